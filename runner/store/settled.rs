//! Whether everything that was written is there to be read, so that what was read stays true until somebody writes.
//!
//! SQLite tells of every commit of every connection before it takes effect, whoever wrote and with what statement; that
//! a commit has taken effect is known when its connection comes back to the pool. Commits follow each other, so only
//! the newest one can be under way. Nobody else writes: the state folder is locked.

use std::sync::{Arc, Mutex, PoisonError};

use sqlx::sqlite::SqliteConnection;

use super::Store;

/// A state of the database: two equal marks, and nothing was written in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u64);

/// Counts the commits of all connections. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub(super) struct Commits(Arc<Mutex<Count>>);

#[derive(Debug, Default)]
struct Count {
    begun: u64,
    /// Of these it is known that they have taken effect.
    settled: u64,
    /// The connection of the newest one.
    by: usize,
}

impl Commits {
    /// Counts what this new connection commits from now on.
    pub(super) async fn watch(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let mut handle = connection.lock_handle().await?;
        let (commits, by) = (self.clone(), handle.as_raw_handle().as_ptr() as usize);
        handle.set_commit_hook(move || {
            commits.begin(by);
            true
        });
        Ok(())
    }

    /// Takes note that a connection has come back to the pool with nothing under way. One that never comes back leaves
    /// its commit unsettled until the next one, and that only costs time.
    pub(super) async fn settle(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        if self.mark().is_none() {
            let by = connection.lock_handle().await?.as_raw_handle().as_ptr() as usize;
            self.end(by);
        }
        Ok(())
    }

    fn begin(&self, by: usize) {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        count.begun += 1;
        count.by = by;
    }

    fn end(&self, by: usize) {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if count.by == by {
            count.settled = count.begun;
        }
    }

    fn mark(&self) -> Option<Mark> {
        let count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (count.begun == count.settled).then_some(Mark(count.begun))
    }
}

impl Store {
    /// Where the database stands; `None` while something is being written. What was read after a mark was taken is true
    /// for as long as the same mark is given.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        self.commits.mark()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    async fn settled(store: &Store) -> Mark {
        loop {
            if let Some(mark) = store.mark() {
                return mark;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_mark_stays_while_nothing_is_written_and_never_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("drydock.db"), Clock::System).await.unwrap();
        let before = settled(&store).await;
        store.counts().await.unwrap();
        // What is rolled back was never written.
        store.ping().await.unwrap();
        assert_eq!(settled(&store).await, before);
        store.instance("a").await.unwrap();
        // The connection may not be back yet, but the mark is gone as soon as the writer knows that it has written.
        assert_ne!(store.mark(), Some(before));
        assert_ne!(settled(&store).await, before);
    }

    #[test]
    fn a_commit_is_settled_by_its_own_connection_alone() {
        let commits = Commits::default();
        commits.begin(1);
        commits.end(2);
        assert_eq!(commits.mark(), None);
        commits.begin(2);
        commits.end(1);
        assert_eq!(commits.mark(), None);
        commits.end(2);
        assert_eq!(commits.mark(), Some(Mark(2)));
    }
}
