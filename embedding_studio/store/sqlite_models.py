"""Registered models in SQLite."""

from dataclasses import replace

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects.sqlite import insert as upsert

from embedding_studio.models import RegisteredModel
from embedding_studio.store.sqlite_file import SqliteFile, model_rows

MODEL = TypeAdapter(RegisteredModel)


class SqliteModels(SqliteFile):
    def _is_model(self, method: str) -> sa.ColumnElement[bool]:
        return sa.and_(model_rows.c.project == self.project, model_rows.c.method == method)

    def find_model(self, method: str) -> RegisteredModel | None:
        found = sa.select(model_rows.c.document).where(self._is_model(method))
        with self._reading() as connection:
            document = connection.scalar(found)
        return None if document is None else MODEL.validate_python(document)

    def change_model(self, changed: RegisteredModel) -> RegisteredModel | None:
        after = replace(changed, project=self.project, revision=changed.revision + 1)
        values = {
            "revision": after.revision,
            "is_mirrored": after.is_mirrored,
            "document": MODEL.dump_python(after, mode="json"),
        }
        key = {"project": self.project, "method": changed.method}
        is_as_seen = sa.and_(
            self._is_model(changed.method), model_rows.c.revision == changed.revision
        )
        with self._writing() as connection:
            write: sa.Insert | sa.Update = sa.update(model_rows).where(is_as_seen).values(**values)
            if changed.revision == 0:
                write = upsert(model_rows).values(**key, **values).on_conflict_do_nothing()
            return after if connection.execute(write).rowcount else None

    def all_models(self, are_mirrored: bool | None = None) -> list[RegisteredModel]:
        found = sa.select(model_rows.c.document).order_by(model_rows.c.project, model_rows.c.method)
        if are_mirrored is not None:
            found = found.where(model_rows.c.is_mirrored.is_(are_mirrored))
        with self._reading() as connection:
            return [MODEL.validate_python(document) for document in connection.scalars(found)]
