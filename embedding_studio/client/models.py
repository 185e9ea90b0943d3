"""Calls for registered models: a method's versions, a person's promotion, and the way back."""

from embedding_studio.client.connection import Connection
from embedding_studio.wire.models import ChampionView, PromoteBody, RollbackBody


class ModelCalls(Connection):
    """What tells of a method's champion, and changes it."""

    def champion(self, fine_tuning_method: str) -> ChampionView:
        """Return a method's versions, newest first, and which of them is champion."""
        return self._get(
            ChampionView, "/fine-tuning/champion", fine_tuning_method=fine_tuning_method
        )

    def promote_task(self, task_id: str, reason: str = "") -> ChampionView:
        """Make a task's model champion, whatever its verdict was: `wanted` until a worker has."""
        body = PromoteBody.model_construct(reason=reason)
        return self._post(ChampionView, f"/fine-tuning/task/{task_id}/promote", body)

    def roll_back(
        self, fine_tuning_method: str, version: int | None = None, reason: str = ""
    ) -> ChampionView:
        """Make an earlier version champion; None: the one whose place the present one took, or, if
        a model is `wanted`, the present one itself: it stays."""
        expected = None
        if version is None:  # named here: a retry after a lost answer must not go back once more
            found = self.champion(fine_tuning_method)
            version, expected = found.previous_version, found.champion
        body = RollbackBody.model_construct(
            fine_tuning_method=fine_tuning_method,
            version=version,
            expected_champion=expected,
            reason=reason,
        )
        return self._post(ChampionView, "/fine-tuning/champion/rollback", body)
