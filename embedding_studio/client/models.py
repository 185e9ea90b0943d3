"""Calls for registered models: a method's versions, and the way back to an earlier one."""

from embedding_studio.client.connection import Connection
from embedding_studio.wire.models import ChampionView, RollbackBody


class ModelCalls(Connection):
    """What tells of a method's champion, and changes it."""

    def champion(self, fine_tuning_method: str) -> ChampionView:
        """Return a method's versions, newest first, and which of them is champion."""
        return self._get(
            ChampionView, "/fine-tuning/champion", fine_tuning_method=fine_tuning_method
        )

    def roll_back(
        self, fine_tuning_method: str, version: int | None = None, reason: str = ""
    ) -> ChampionView:
        """Make an earlier version champion; None: the one whose place the present one took."""
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
