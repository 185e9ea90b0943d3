"""API keys in SQLite."""

from datetime import datetime

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects.sqlite import insert as upsert

from embedding_studio.keys import ApiKey
from embedding_studio.store.base import unknown
from embedding_studio.store.sqlite_file import SqliteFile, key_rows

KEY = TypeAdapter(ApiKey)


class SqliteKeys(SqliteFile):
    def add_key(self, key: ApiKey) -> None:
        with self._writing() as connection:
            insert = upsert(key_rows).values(KEY.dump_python(key))
            connection.execute(insert.on_conflict_do_nothing(index_elements=["id"]))

    def find_key(self, key_id: str) -> ApiKey | None:
        with self._reading() as connection:
            row = connection.execute(
                sa.select(key_rows).where(key_rows.c.id == key_id)
            ).one_or_none()
        return None if row is None else KEY.validate_python(row._asdict())

    def list_keys(self) -> list[ApiKey]:
        with self._reading() as connection:
            rows = connection.execute(sa.select(key_rows).order_by(key_rows.c.arrival))
            return [KEY.validate_python(row._asdict()) for row in rows]

    def end_key(
        self,
        key_id: str,
        *,
        expires_at: datetime | None = None,
        revoked_at: datetime | None = None,
    ) -> ApiKey:
        with self._writing() as connection:
            for column, moment in (
                (key_rows.c.expires_at, expires_at),
                (key_rows.c.revoked_at, revoked_at),
            ):
                if moment is not None:
                    is_nearer = sa.or_(column.is_(None), column > moment)
                    connection.execute(
                        sa.update(key_rows)
                        .where(key_rows.c.id == key_id, is_nearer)
                        .values({column.name: moment})
                    )
        key = self.find_key(key_id)
        if key is None:
            raise unknown("API key", key_id)
        return key
