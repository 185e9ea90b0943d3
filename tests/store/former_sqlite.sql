BEGIN TRANSACTION;
CREATE TABLE api_keys (
	arrival INTEGER NOT NULL, 
	id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	project VARCHAR NOT NULL, 
	scopes JSON NOT NULL, 
	secret_sha256 VARCHAR NOT NULL, 
	created_at DATETIME NOT NULL, 
	expires_at DATETIME, 
	revoked_at DATETIME, 
	PRIMARY KEY (arrival), 
	UNIQUE (id)
);
INSERT INTO "api_keys" VALUES(1,'0123456789ab','ann','default','["ingest", "read"]','abababababababababababababababababababababababababababababababab','2026-01-02 03:04:05.678000','2026-01-02 03:05:44.678000',NULL);
INSERT INTO "api_keys" VALUES(2,'ba9876543210','bob','acme','["admin"]','cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd','2026-01-02 03:04:06.678000',NULL,'2026-01-02 03:04:07.678000');
CREATE TABLE batches (
	batch_id VARCHAR NOT NULL, 
	project VARCHAR DEFAULT 'default' NOT NULL, 
	status VARCHAR NOT NULL, 
	created_at DATETIME NOT NULL, 
	session_count INTEGER NOT NULL, 
	release_id VARCHAR, 
	released_at DATETIME, 
	since DATETIME, 
	counts JSON DEFAULT '{}' NOT NULL, 
	bytes INTEGER DEFAULT '0' NOT NULL, 
	PRIMARY KEY (batch_id)
);
INSERT INTO "batches" VALUES('d2c99130c0c909c79f37c31b','default','released','2026-01-02 03:04:05.678000',3,'r-1','2026-01-02 03:04:15.678000',NULL,'{"events_not_shown": 1}',1517);
INSERT INTO "batches" VALUES('a5254a188589e30ebdf494fc','default','collecting','2026-01-02 03:04:25.678000',4,NULL,NULL,'2026-01-02 03:04:15.678000','{}',1416);
INSERT INTO "batches" VALUES('1aa414ff68a4a009fc1957ba','acme','collecting','2026-01-02 03:04:26.678000',1,NULL,NULL,NULL,'{}',418);
CREATE TABLE early_events (
	arrival INTEGER NOT NULL, 
	project VARCHAR NOT NULL, 
	session_id VARCHAR NOT NULL, 
	event_id VARCHAR NOT NULL, 
	document JSON, 
	expires_at DATETIME NOT NULL, 
	PRIMARY KEY (arrival), 
	UNIQUE (session_id, event_id)
);
INSERT INTO "early_events" VALUES(1,'default','later','e-1','{"event_id": "e-1", "object_id": "a", "created_at": "2026-01-02T03:04:06.678000Z", "event_type": "click", "meta": {"n": 1}}','2125-12-09 03:04:05.678000');
INSERT INTO "early_events" VALUES(2,'default','later','e-2','{"event_id": "e-2", "object_id": "b", "created_at": "2026-01-02T03:04:06.678000Z", "event_type": "click", "meta": {"n": 1}}','2125-12-09 03:04:05.678000');
INSERT INTO "early_events" VALUES(3,'default','later','',NULL,'2125-12-09 03:04:05.678000');
INSERT INTO "early_events" VALUES(4,'acme','p:acme:later','e-1','{"event_id": "e-1", "object_id": "a", "created_at": "2026-01-02T03:04:06.678000Z", "event_type": "click", "meta": {"n": 1}}','2125-12-09 03:04:05.678000');
CREATE TABLE events (
	arrival INTEGER NOT NULL, 
	session_id VARCHAR NOT NULL, 
	event_id VARCHAR NOT NULL, 
	shown_kind VARCHAR, 
	document JSON NOT NULL, 
	PRIMARY KEY (arrival), 
	UNIQUE (session_id, event_id), 
	FOREIGN KEY(session_id) REFERENCES sessions (session_id)
);
INSERT INTO "events" VALUES(1,'s-1','e-1','click','{"event_id": "e-1", "object_id": "a", "created_at": "2026-01-02T03:04:06.678000Z", "event_type": "click", "meta": {"n": 1}}');
INSERT INTO "events" VALUES(2,'s-1','e-2','purchase','{"event_id": "e-2", "object_id": "b", "created_at": "2026-01-02T03:04:06.678000Z", "event_type": "purchase", "meta": {"n": 1}}');
INSERT INTO "events" VALUES(3,'s-2','e-1',NULL,'{"event_id": "e-1", "object_id": "elsewhere", "created_at": "2026-01-02T03:04:06.678000Z", "event_type": "click", "meta": {"n": 1}}');
INSERT INTO "events" VALUES(4,'s-3','e-9','viewitem','{"event_id": "e-9", "object_id": "b", "created_at": "2026-01-02T03:04:06.678000Z", "event_type": "View item", "meta": {"n": 1}}');
INSERT INTO "events" VALUES(5,'s-1','e-3','click','{"event_id": "e-3", "object_id": "b", "created_at": "2026-01-02T03:04:06.678000Z", "event_type": "click", "meta": {"n": 1}}');
INSERT INTO "events" VALUES(6,'s-4','e-1','purchase','{"event_id": "e-1", "object_id": "b", "created_at": "2026-01-02T03:04:06.678000Z", "event_type": "purchase", "meta": {"n": 1}}');
INSERT INTO "events" VALUES(7,'s-6','e-1','click','{"event_id": "e-1", "object_id": "a", "created_at": "2026-01-02T03:04:06.678000Z", "event_type": "click", "meta": {"n": 1}}');
INSERT INTO "events" VALUES(8,'p:acme:s-1','other','click','{"event_id": "other", "object_id": "a", "created_at": "2026-01-02T03:04:06.678000Z", "event_type": "click", "meta": {"n": 1}}');
CREATE TABLE models (
	project VARCHAR NOT NULL, 
	method VARCHAR NOT NULL, 
	revision INTEGER NOT NULL, 
	is_mirrored BOOLEAN NOT NULL, 
	document JSON NOT NULL, 
	PRIMARY KEY (project, method)
);
INSERT INTO "models" VALUES('default','m',2,0,'{"project": "default", "method": "m", "versions": [{"number": 1, "model": {"run_id": "run-0", "artifact_uri": "mlflow-artifacts:/1/run-1/artifacts/model", "files": [{"path": "a/b.bin", "size_bytes": 3, "sha256": "00ff"}]}, "created_at": "2026-01-02T03:04:05.678000Z", "task_id": null, "promotion": null, "previous": null, "removed_at": null}, {"number": 2, "model": {"run_id": "run-1", "artifact_uri": "mlflow-artifacts:/1/run-1/artifacts/model", "files": [{"path": "a/b.bin", "size_bytes": 3, "sha256": "00ff"}]}, "created_at": "2026-01-02T03:04:09.678000Z", "task_id": "394e80e0b42f8876621884b3", "promotion": {"promoted": true, "reason": "better", "metric_name": "test", "baseline": 0.1, "best": 0.2, "delta": 0.1, "delta_ci95": [0.05, 0.15], "test_queries": 7}, "previous": 1, "removed_at": null}], "champion": 2, "moves": [{"kind": "initial", "at": "2026-01-02T03:04:05.678000Z", "from_version": null, "to_version": 1, "by": "w-1", "why": "first"}, {"kind": "promoted", "at": "2026-01-02T03:04:09.678000Z", "from_version": 1, "to_version": 2, "by": "w-1", "why": "better"}], "mirrored": null, "mirroring": null, "mirroring_until": null, "revision": 2}');
CREATE TABLE pings (
	id INTEGER NOT NULL, 
	at DATETIME NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE schedules (
	arrival INTEGER NOT NULL, 
	id VARCHAR NOT NULL, 
	project VARCHAR NOT NULL, 
	fine_tuning_method VARCHAR NOT NULL, 
	created_at DATETIME NOT NULL, 
	next_at DATETIME NOT NULL, 
	cron VARCHAR, 
	interval_seconds FLOAT, 
	min_new_sessions INTEGER NOT NULL, 
	budget JSON NOT NULL, 
	search JSON DEFAULT '{}' NOT NULL, 
	event_weights JSON, 
	metadata JSON, 
	webhook_url VARCHAR, 
	is_paused BOOLEAN NOT NULL, 
	last_task_id VARCHAR, 
	last_outcome VARCHAR, 
	PRIMARY KEY (arrival), 
	UNIQUE (id)
);
INSERT INTO "schedules" VALUES(1,'s-1','acme','m','2026-01-02 03:04:05.678000','2026-01-02 03:05:05.678000','0 3 * * *',NULL,5,'{"max_trials": 3, "max_minutes": 9.5, "max_trained_tokens": null, "max_minutes_per_trial": null}','{"sampler": null, "pruner": "asha"}','{"a.$b": 0.5}','{"a.b": [1]}','https://example.com/hook',1,NULL,NULL);
CREATE TABLE sessions (
	session_id VARCHAR NOT NULL, 
	batch_id VARCHAR NOT NULL, 
	number INTEGER NOT NULL, 
	is_irrelevant BOOLEAN NOT NULL, 
	document JSON NOT NULL, 
	PRIMARY KEY (session_id), 
	UNIQUE (batch_id, number), 
	FOREIGN KEY(batch_id) REFERENCES batches (batch_id)
);
INSERT INTO "sessions" VALUES('s-1','d2c99130c0c909c79f37c31b',1,0,'{"session_id": "s-1", "search_query": "query of s-1", "search_results": [{"object_id": "a", "rank": 0.5, "meta": {"text": "An a", "dotted.$key": [1]}}, {"object_id": "b", "rank": null, "meta": {}}], "created_at": "2026-01-02T03:04:05.678000Z", "search_meta": {"shop": "\u00e9"}, "user_id": "user"}');
INSERT INTO "sessions" VALUES('s-2','d2c99130c0c909c79f37c31b',2,1,'{"session_id": "s-2", "search_query": "query of s-2", "search_results": [{"object_id": "a", "rank": 0.5, "meta": {"text": "An a", "dotted.$key": [1]}}, {"object_id": "b", "rank": null, "meta": {}}], "created_at": "2026-01-02T03:04:05.678000Z", "search_meta": {"shop": "\u00e9"}, "user_id": "user"}');
INSERT INTO "sessions" VALUES('s-3','d2c99130c0c909c79f37c31b',3,0,'{"session_id": "s-3", "search_query": "query of s-3", "search_results": [{"object_id": "a", "rank": 0.5, "meta": {"text": "An a", "dotted.$key": [1]}}, {"object_id": "b", "rank": null, "meta": {}}], "created_at": "2026-01-02T03:04:05.678000Z", "search_meta": {"shop": "\u00e9"}, "user_id": "user"}');
INSERT INTO "sessions" VALUES('p:default:p:odd','a5254a188589e30ebdf494fc',1,0,'{"session_id": "p:odd", "search_query": "query of p:odd", "search_results": [{"object_id": "a", "rank": 0.5, "meta": {"text": "An a", "dotted.$key": [1]}}, {"object_id": "b", "rank": null, "meta": {}}], "created_at": "2026-01-02T03:04:05.678000Z", "search_meta": {"shop": "\u00e9"}, "user_id": "user"}');
INSERT INTO "sessions" VALUES('s-4','a5254a188589e30ebdf494fc',2,0,'{"session_id": "s-4", "search_query": "query of s-4", "search_results": [{"object_id": "a", "rank": 0.5, "meta": {"text": "An a", "dotted.$key": [1]}}, {"object_id": "b", "rank": null, "meta": {}}], "created_at": "2026-01-02T03:04:05.678000Z", "search_meta": {"shop": "\u00e9"}, "user_id": "user"}');
INSERT INTO "sessions" VALUES('s-5','a5254a188589e30ebdf494fc',3,0,'{"session_id": "s-5", "search_query": "query of s-5", "search_results": [{"object_id": "a", "rank": 0.5, "meta": {"text": "An a", "dotted.$key": [1]}}, {"object_id": "b", "rank": null, "meta": {}}], "created_at": "2026-01-02T03:04:25.678000Z", "search_meta": {"shop": "\u00e9"}, "user_id": "user"}');
INSERT INTO "sessions" VALUES('s-6','a5254a188589e30ebdf494fc',4,1,'{"session_id": "s-6", "search_query": "query of s-6", "search_results": [{"object_id": "a", "rank": 0.5, "meta": {"text": "An a", "dotted.$key": [1]}}, {"object_id": "b", "rank": null, "meta": {}}], "created_at": "2026-01-02T03:04:05.678000Z", "search_meta": {"shop": "\u00e9"}, "user_id": "user"}');
INSERT INTO "sessions" VALUES('p:acme:s-1','1aa414ff68a4a009fc1957ba',1,0,'{"session_id": "s-1", "search_query": "query of s-1", "search_results": [{"object_id": "a", "rank": 0.5, "meta": {"text": "An a", "dotted.$key": [1]}}, {"object_id": "b", "rank": null, "meta": {}}], "created_at": "2026-01-02T03:04:05.678000Z", "search_meta": {"shop": "\u00e9"}, "user_id": "user"}');
CREATE TABLE task_events (
	task_id VARCHAR NOT NULL, 
	number INTEGER NOT NULL, 
	document JSON NOT NULL, 
	PRIMARY KEY (task_id, number), 
	FOREIGN KEY(task_id) REFERENCES tasks (id)
);
INSERT INTO "task_events" VALUES('394e80e0b42f8876621884b3',1,'{"kind": "created", "at": "2026-01-02T03:04:05.678000Z", "detail": "added, waits for a worker", "data": {}}');
INSERT INTO "task_events" VALUES('394e80e0b42f8876621884b3',2,'{"kind": "claimed", "at": "2026-01-02T03:04:06.678000Z", "detail": "attempt 1, by worker w-1", "data": {"attempt": 1, "worker_id": "w-1"}}');
INSERT INTO "task_events" VALUES('394e80e0b42f8876621884b3',3,'{"kind": "trial_finished", "at": "2026-01-02T03:04:08.678000Z", "detail": "trial 1", "data": {"trial": 1}}');
INSERT INTO "task_events" VALUES('394e80e0b42f8876621884b3',4,'{"kind": "done", "at": "2026-01-02T03:04:10.678000Z", "detail": "done", "data": {}}');
INSERT INTO "task_events" VALUES('a5187176842f61e9283a5177',1,'{"kind": "created", "at": "2026-01-02T03:04:13.678000Z", "detail": "added, waits for a worker", "data": {}}');
INSERT INTO "task_events" VALUES('a5187176842f61e9283a5177',2,'{"kind": "claimed", "at": "2026-01-02T03:04:14.678000Z", "detail": "attempt 1, by worker w-1", "data": {"attempt": 1, "worker_id": "w-1"}}');
INSERT INTO "task_events" VALUES('9a3f44c9b927fc3e9bb96db7',1,'{"kind": "created", "at": "2026-01-02T03:04:15.678000Z", "detail": "added, waits for a worker", "data": {}}');
INSERT INTO "task_events" VALUES('3ade12ef67aa908e54301e1f',1,'{"kind": "created", "at": "2026-01-02T03:04:15.678000Z", "detail": "added, waits for a worker", "data": {}}');
INSERT INTO "task_events" VALUES('3ade12ef67aa908e54301e1f',2,'{"kind": "canceled", "at": "2026-01-02T03:04:16.678000Z", "detail": "canceled while pending", "data": {}}');
CREATE TABLE tasks (
	arrival INTEGER NOT NULL, 
	id VARCHAR NOT NULL, 
	project VARCHAR DEFAULT 'default' NOT NULL, 
	request JSON NOT NULL, 
	fine_tuning_method VARCHAR NOT NULL, 
	status VARCHAR NOT NULL, 
	created_at DATETIME NOT NULL, 
	updated_at DATETIME NOT NULL, 
	batch_id VARCHAR, 
	metadata JSON, 
	idempotency_key VARCHAR, 
	budget JSON NOT NULL, 
	search JSON DEFAULT '{}' NOT NULL, 
	event_weights JSON, 
	attempt INTEGER NOT NULL, 
	expired_leases INTEGER NOT NULL, 
	fresh_starts INTEGER DEFAULT '0' NOT NULL, 
	worker_id VARCHAR, 
	lease_expires_at DATETIME, 
	progress JSON, 
	experiment_id VARCHAR, 
	best_model JSON, 
	promotion JSON, 
	error VARCHAR, 
	webhook_url VARCHAR, 
	delivery JSON, 
	delivery_due_at DATETIME, 
	PRIMARY KEY (arrival), 
	UNIQUE (id)
);
INSERT INTO "tasks" VALUES(1,'394e80e0b42f8876621884b3','default','{"fine_tuning_method": "m", "batch_id": "d2c99130c0c909c79f37c31b", "metadata": {"a.b": {"$c": [1, null]}}, "idempotency_key": "key-1", "budget": {"max_trials": 3, "max_minutes": 1.5, "max_trained_tokens": null, "max_minutes_per_trial": null}, "search": {"sampler": "grid", "pruner": null}, "event_weights": {"click": 2.0}, "webhook_url": "https://example.com/hook"}','m','done','2026-01-02 03:04:05.678000','2026-01-02 03:04:10.678000','d2c99130c0c909c79f37c31b','{"a.b": {"$c": [1, null]}}','key-1','{"max_trials": 3, "max_minutes": 1.5, "max_trained_tokens": null, "max_minutes_per_trial": null}','{"sampler": "grid", "pruner": null}','{"click": 2.0}',1,0,0,NULL,NULL,'{"phase": "search", "main_metric_name": "val", "trial": 1, "max_trials": 3, "step": null, "main_metric": null, "best_so_far": null, "baseline": null, "finished_trials": 0, "failed_trials": 0, "pruned_trials": 0, "running_trials": [{"trial": 2, "started_at": "2026-01-02T03:04:07.678000Z", "step": 1, "main_metric": 0.25}], "seconds_left": null, "trained_tokens": 0, "estimated_trained_tokens": null}','1','{"run_id": "run-1", "artifact_uri": "mlflow-artifacts:/1/run-1/artifacts/model", "files": [{"path": "a/b.bin", "size_bytes": 3, "sha256": "00ff"}]}','{"promoted": true, "reason": "better", "metric_name": "test", "baseline": 0.1, "best": 0.2, "delta": 0.1, "delta_ci95": [0.05, 0.15], "test_queries": 7}',NULL,'https://example.com/hook','{"id": "msg_20f9da6ccf8af34b6ad2ef8a", "attempts": 1, "error": "HTTP 500", "delivered_at": null}','2026-01-02 03:05:45.678000');
INSERT INTO "tasks" VALUES(2,'a5187176842f61e9283a5177','default','{"fine_tuning_method": "m", "batch_id": null, "metadata": {"n": 1}, "idempotency_key": null, "budget": {"max_trials": null, "max_minutes": null, "max_trained_tokens": null, "max_minutes_per_trial": null}, "search": {"sampler": null, "pruner": null}, "event_weights": null, "webhook_url": null}','m','processing','2026-01-02 03:04:13.678000','2026-01-02 03:04:14.678000',NULL,'{"n": 1}',NULL,'{"max_trials": null, "max_minutes": null, "max_trained_tokens": null, "max_minutes_per_trial": null}','{"sampler": null, "pruner": null}',NULL,1,0,0,'w-1','2026-01-02 03:05:14.678000',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(3,'9a3f44c9b927fc3e9bb96db7','default','{"fine_tuning_method": "m", "batch_id": null, "metadata": null, "idempotency_key": "key-3", "budget": {"max_trials": null, "max_minutes": null, "max_trained_tokens": null, "max_minutes_per_trial": null}, "search": {"sampler": null, "pruner": null}, "event_weights": null, "webhook_url": null}','m','pending','2026-01-02 03:04:15.678000','2026-01-02 03:04:15.678000',NULL,NULL,'key-3','{"max_trials": null, "max_minutes": null, "max_trained_tokens": null, "max_minutes_per_trial": null}','{"sampler": null, "pruner": null}',NULL,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(4,'3ade12ef67aa908e54301e1f','acme','{"fine_tuning_method": "m", "batch_id": null, "metadata": null, "idempotency_key": "key-1", "budget": {"max_trials": null, "max_minutes": null, "max_trained_tokens": null, "max_minutes_per_trial": null}, "search": {"sampler": null, "pruner": null}, "event_weights": null, "webhook_url": null}','m','canceled','2026-01-02 03:04:15.678000','2026-01-02 03:04:16.678000',NULL,NULL,'key-1','{"max_trials": null, "max_minutes": null, "max_trained_tokens": null, "max_minutes_per_trial": null}','{"sampler": null, "pruner": null}',NULL,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE usage (
	project VARCHAR NOT NULL, 
	sessions INTEGER NOT NULL, 
	bytes INTEGER NOT NULL, 
	PRIMARY KEY (project)
);
INSERT INTO "usage" VALUES('default',7,4675);
INSERT INTO "usage" VALUES('acme',1,952);
CREATE TABLE workers (
	worker_id VARCHAR NOT NULL, 
	methods JSON NOT NULL, 
	seen_at DATETIME NOT NULL, 
	plugin_failures JSON DEFAULT '{}' NOT NULL, 
	missing_models JSON DEFAULT '{}' NOT NULL, 
	clock_ahead_seconds FLOAT DEFAULT '0' NOT NULL, 
	PRIMARY KEY (worker_id)
);
INSERT INTO "workers" VALUES('w-1','["m"]','2026-01-02 03:04:05.678000','{}','{}',0.0);
CREATE UNIQUE INDEX release_ids_of_projects ON batches (project, release_id) WHERE release_id IS NOT NULL;
CREATE UNIQUE INDEX one_collecting_batch_a_project ON batches (project) WHERE status = 'collecting';
CREATE INDEX early_events_by_age ON early_events (project, expires_at);
CREATE INDEX tasks_by_age ON tasks (status, created_at, arrival);
CREATE INDEX tasks_by_delivery ON tasks (delivery_due_at);
CREATE INDEX tasks_of_projects ON tasks (project, created_at, arrival);
CREATE INDEX tasks_by_status ON tasks (project, status, created_at, arrival);
CREATE UNIQUE INDEX idempotency_keys_of_projects ON tasks (project, idempotency_key) WHERE idempotency_key IS NOT NULL;
COMMIT;
