//! `serve`: the server through the binary, on the loopback interface.

mod abuse;
mod api;
#[path = "../common/mod.rs"]
mod common;
mod limits;
mod load;
mod server;
