//! What an engine has kept of a long output is enough to tell why its program died.

use drydock::diagnose::{root, signs};
use drydock::sandbox::Sandbox;
use drydock_spec::FailureKind;

use crate::stage::Stage;

/// How much of the end is asked for, in bytes.
const SEARCHED: usize = 1 << 20;
const DEATH: &str = "Traceback (most recent call last):\n  File \"/app/train.py\", line 64, in step\n    loss.backward()\n\
                     torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 144.00 MiB.\n";

#[tokio::test]
async fn of_a_log_of_100_mb_the_reason_at_its_end_is_found_and_little_of_it_is_read() {
    let stage = Stage::new();
    let act = stage.act(&["die-saying", DEATH, "100"]);
    assert_eq!(stage.play(&act).await.code, 1);
    let words = stage.sandbox.last_words(&act.launch.name, SEARCHED).await.unwrap();
    assert!((SEARCHED / 4..=SEARCHED).contains(&words.len()), "{} bytes", words.len());
    assert!(words.ends_with(DEATH), "the end is kept");
    let root = root::of_tail(&words).expect("it says why");
    assert_eq!(signs::kind(&root.message), Some(FailureKind::GpuOutOfMemory));
    assert_eq!(root.frame.as_deref(), Some("train.py:step"));
}
