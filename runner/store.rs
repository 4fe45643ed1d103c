//! The truth about jobs: SQLite through sqlx.
//!
//! A job's row and its event line are written in one transaction, and only ever through [`JobState::apply`]; only a
//! [`Lease`] speaks for a running attempt. Every transaction that writes begins as `BEGIN IMMEDIATE`: one that reads
//! first and writes later would fail with SQLITE_BUSY under load, whatever the busy timeout.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use drydock_spec::{InvalidTransition, JobId};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, Sqlite, Transaction};

use crate::clock::Clock;

mod advice;
mod awaited;
mod catalog;
mod changes;
mod checkpoints;
mod cordons;
mod failures;
mod followers;
mod forecasts;
mod glance;
mod history;
mod jobs;
mod knowledge;
mod lease;
mod lengths;
mod line;
mod list;
mod retention;
mod rows;
mod said;
mod settled;
mod trials;

pub use advice::{Advice, Against, NewAdvice};
pub use catalog::CatalogEntry;
pub use changes::{Changes, Subscription};
pub use checkpoints::Resumed;
pub use cordons::{BY_DRYDOCK, Cordon};
pub use failures::{FailureGroup, FailureRecord, KeptFailure};
pub use glance::{AwaitedJob, MOST_AHEAD};
pub use history::{Entry, LogLine, MetricsLine};
pub use jobs::{Job, LONGEST_WAIT_MS, NewJob, RemedyOf, Submitted};
pub use knowledge::{Experience, Imported, SeenElsewhere};
pub use lease::{AttemptRow, Cure, Holder, Lease, ReportBatch, Termination};
pub use line::{Front, Queued, UnderWay};
pub use list::{Filter, Page};
pub use retention::Left;
pub use settled::Mark;
pub use trials::{NewTrial, Trial};

/// Something could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no job `{0}`; list_jobs shows the jobs there are")]
    NoSuchJob(JobId),
    #[error("idempotency key `{key}` was used for job `{job}` with other options; use a new key for a new job")]
    KeyReused { key: String, job: JobId },
    /// Somebody else speaks for the attempt now: stop quietly.
    #[error("the lease on attempt {attempt} of job `{job}` is lost")]
    LeaseLost { job: JobId, attempt: u32 },
    #[error(transparent)]
    Transition(#[from] InvalidTransition),
    #[error("the database holds something unreadable: {0}")]
    Corrupt(String),
    #[error("no room left for the database: {0}; free disk space")]
    Full(String),
    #[error("another drydock uses {0}; stop it, or choose another state folder")]
    InUse(PathBuf),
    #[error("database: {0}")]
    Database(String),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        // SQLITE_FULL is 13; the disk may also surface as an I/O error with the system's own words.
        let full = matches!(&error, sqlx::Error::Database(e) if e.code().is_some_and(|code| code == "13"));
        if full { Self::Full(error.to_string()) } else { Self::Database(error.to_string()) }
    }
}

impl From<sqlx::migrate::MigrateError> for StoreError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        Self::Database(error.to_string())
    }
}

/// The database of one installation. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
    clock: Clock,
    changes: Arc<Changes>,
    commits: settled::Commits,
}

impl Store {
    /// Opens the database at `path`, making it and bringing it up to date as needed.
    pub async fn open(path: &Path, clock: Clock) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // In WAL mode NORMAL loses nothing when the process dies, and is some thirty times faster than FULL.
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            // In KiB, for each connection: eight times SQLite's own 2 MiB would be most of the gateway's memory, and the
            // kernel holds the same pages.
            .pragma("cache_size", "-512")
            .busy_timeout(Duration::from_secs(10));
        let commits = settled::Commits::default();
        let (watching, settling) = (commits.clone(), commits.clone());
        let pool = SqlitePoolOptions::new()
            .max_connections(8)
            .after_connect(move |connection, _| {
                let commits = watching.clone();
                Box::pin(async move { commits.watch(connection).await })
            })
            // A full disk makes SQLite roll back by itself, and the connection goes on counting a transaction that is
            // there no more: every later one on it would be refused. The ping comes after a rollback that is under way.
            .after_release(move |connection, _| {
                let commits = settling.clone();
                Box::pin(async move {
                    if connection.is_in_transaction() {
                        connection.ping().await?;
                    }
                    commits.settle(connection).await?;
                    Ok(!connection.is_in_transaction())
                })
            })
            .test_before_acquire(false)
            .connect_with(options)
            .await?;
        sqlx::migrate!("./migrations").run(&pool).await?;
        Ok(Self { pool, clock, changes: Arc::new(Changes::default()), commits })
    }

    /// Closes every connection after what is under way; the write-ahead log is folded into the database.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// The clock that stamps what is stored.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Tells who waits when a job's history has grown.
    #[must_use]
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// The name that this installation's containers are labelled with: made once, kept for ever.
    pub async fn instance(&self, fresh: &str) -> Result<String, StoreError> {
        sqlx::query(
            "-- store::instance
             INSERT INTO installation (name, value) VALUES ('instance', $1) ON CONFLICT (name) DO NOTHING",
        )
        .bind(fresh)
        .execute(&self.pool)
        .await?;
        let value = sqlx::query_scalar::<_, String>(
            "-- store::instance
             SELECT value FROM installation WHERE name = 'instance'",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(value)
    }

    /// Whether the database answers and takes writes.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.write().await?.rollback().await?;
        Ok(())
    }

    /// Connections that are at work, and those that are open: for `/metrics`.
    #[must_use]
    pub fn connections(&self) -> (u32, u32) {
        let (open, idle) = (self.pool.size(), self.pool.num_idle());
        (open.saturating_sub(u32::try_from(idle).unwrap_or(u32::MAX)), open)
    }

    async fn write(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }
}
