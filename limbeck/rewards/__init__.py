"""Rewards: what a completion is worth, by rule or by a function of yours."""

from limbeck.rewards.base import Judged, Reward, reward, rewards
from limbeck.rewards.build import RewardLike, build_reward
from limbeck.rewards.scoring import judged_entries, score

__all__ = ["Judged", "Reward", "RewardLike", "build_reward", "judged_entries", "reward", "rewards", "score"]
