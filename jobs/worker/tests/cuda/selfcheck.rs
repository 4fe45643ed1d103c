//! Whether the selfcheck would notice a GPU that computes wrongly.

use std::process::Command;

use crate::emulated_gpu;
use crate::scene::WORKER;

/// What no kernel writes is no number: here the gradients of embeddings, which are one tensor of many.
#[test]
fn a_selfcheck_fails_on_a_gpu_that_leaves_a_kernel_out() {
    let mut command = Command::new(WORKER);
    command.arg("selfcheck").env("LD_LIBRARY_PATH", emulated_gpu::folder());
    let output = command.env("EMULATED_GPU_SKIPS", "table_backward_f32").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("gradient, embed_tokens"), "{said}");
    assert!(said.contains("several GPUs in one training were not compared with one: there is one here"), "{said}");
}
