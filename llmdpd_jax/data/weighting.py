"""How often episodes are drawn: the better ones more often, where data are of mixed quality."""

import numpy as np

MOST_WEIGHT = 1024  # of an episode; its least is 1


def return_weights(returns: np.ndarray, lengths: np.ndarray, task_id: np.ndarray, temperature: float) -> np.ndarray:
    """How many times the transitions of each episode count [E] int32: the best of a task most, every one at least once.

    In proportion to exp((return - best) / (best - worst) / temperature), best and worst of the task's: return weighting
    (Hong et al. 2023, arXiv 2306.13085, section 4.1). Cloning then starts from the better part of mixed data, and what
    the rest shows of the world is still seen. Whole numbers, so that sums of them are exact wherever they are taken.

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
    # A task's weighted steps are counted with 32 bits.
    steps = np.bincount(task_id, lengths)
    most = np.clip(np.iinfo(np.int32).max // steps, 1, MOST_WEIGHT)
    weights = most[task_id] * np.exp((returns - best[task_id]) / width[task_id] / temperature)
    return np.maximum(np.rint(weights), 1).astype(np.int32)
