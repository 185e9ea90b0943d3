"""Workers as they are kept: what each last said of itself."""

from datetime import datetime

from embedding_studio.store.codec import Codec, milliseconds, moment_of
from embedding_studio.store.documents import Documents, Kind, above
from embedding_studio.workers import WorkerRecord

WORKERS = Kind("workers")
WORKER = Codec(WorkerRecord)


class Workers:
    """The workers of all projects."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def record(self, worker: WorkerRecord) -> datetime:
        """Insert or replace the record of one worker; return the time by the database's clock."""
        which, document = {"id": worker.worker_id}, WORKER.encode(worker)
        if not self._documents.insert_one(WORKERS, {**which, **document}):
            self._documents.change(WORKERS, which, set=document)
        return moment_of(self._documents.ping())

    def seen(self, after: datetime) -> list[WorkerRecord]:
        """Return the workers seen after that time."""
        where = {"seen_at": above(milliseconds(after))}
        return [*map(WORKER.decode, self._documents.find(WORKERS, where, sort=("id",)))]

    def remove(self, worker_id: str) -> None:
        """Forget a worker that ends; unknown ids are fine."""
        self._documents.delete(WORKERS, {"id": worker_id})
