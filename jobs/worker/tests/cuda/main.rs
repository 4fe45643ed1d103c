//! Computing on a GPU, on one made of the CPU.

#[path = "../emulated_gpu/emulated_gpu.rs"]
mod emulated_gpu;

mod device;
mod error;
#[allow(dead_code, reason = "the tests of the whole worker use all of it")]
#[path = "../run/scene.rs"]
mod scene;
#[path = "../fixture/tiny.rs"]
mod tiny;
mod training;
