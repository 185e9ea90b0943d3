"""Calls for the people whose searches are kept."""

from embedding_studio.client.connection import REPORT_SECONDS, Connection
from embedding_studio.wire.users import UserErased


class UserCalls(Connection):
    """What is done about one person."""

    def erase_user(self, user_id: str) -> UserErased:
        """Erase a user's sessions with their events, but for those that unfinished tasks learn from
        (`held_by`): repeat it once these have ended."""
        params = {"user_id": user_id}
        answer = self._call("DELETE", "/users", params=params, timeout=REPORT_SECONDS)
        return self._read(UserErased, answer)
