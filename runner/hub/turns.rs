//! One at a time: whoever wants the same thing waits for the one who is getting it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

/// Turns by key. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>>);

impl Turns {
    /// Waits for one's turn; it lasts until the answer is dropped.
    pub async fn take(&self, key: &str) -> OwnedMutexGuard<()> {
        let turn = {
            // Nothing panics while the map is held; and if it did, the map would still be a map.
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let known = turns.get(key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(key.to_owned(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_same_key_waits_and_another_does_not() {
        let turns = Turns::default();
        let first = turns.take("a").await;
        assert!(turns.take("b").now_or_never().is_some());
        let mut second = Box::pin(turns.take("a"));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        second.await;
    }
}
