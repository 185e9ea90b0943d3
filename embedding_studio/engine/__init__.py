"""One task's way: it is claimed, learnt from, judged and ended."""
