//! What tests of the whole house share.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "no test uses all of it, and one that cannot go on says where"
)]

pub mod folder;
pub mod model;
pub mod process;
pub mod scripted;
pub mod shape;
pub mod world;
