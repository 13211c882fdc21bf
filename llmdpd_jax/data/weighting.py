"""How much episodes are cloned: the better ones more, where data are of mixed quality."""

import numpy as np


def return_weights(returns: np.ndarray, lengths: np.ndarray, task_id: np.ndarray, temperature: float) -> np.ndarray:
    """How much each transition of an episode counts where actions are cloned [E] float32; 1 on average over a task.

    In proportion to exp((return - worst) / (best - worst) / temperature), with the best and the worst return of the
    task: return weighting (Hong et al. 2023, arXiv 2306.13085, section 4.1). There it says what is drawn. Here it says
    only what is cloned, for prompts and values are learned from all that was done: where all goes well, rewards tell
    less of what was asked for.

    Args:
        returns: [E], sums of an episode's rewards.
        lengths: [E], in steps.
        task_id: int [E], 0 .. N - 1; every task has an episode.
        temperature: above 0; the smaller, the more the best count.
    """
    tasks = int(task_id.max()) + 1
    best, worst = np.full(tasks, -np.inf), np.full(tasks, np.inf)
    np.maximum.at(best, task_id, returns)
    np.minimum.at(worst, task_id, returns)
    width = np.where(best > worst, best - worst, 1.0)
    weights = np.exp((returns - best[task_id]) / width[task_id] / temperature)
    mean = np.bincount(task_id, weights * lengths) / np.bincount(task_id, lengths)
    return (weights / mean[task_id]).astype(np.float32)
