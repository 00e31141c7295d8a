//! CUDA kernels for training decoder language models, and the commands that run them.
//!
//! An op becomes [`Command`]s: launches of kernels from `kernels/*.cuh`, matrix products, copies. They are plain data, which
//! can be inspected without a card. A [`Device`] runs them: a card, or the `Emulator` (feature `emulator`), which runs the same kernels on the
//! processor.

#![warn(missing_docs)]

mod command;
mod device;
#[cfg(feature = "emulator")]
mod emulator;

pub use command::{
    Arguments, Command, Copy, ElementType, Elements, Fill, Launch, Matmul, MatrixOperand, Memory,
    Span,
};
pub use device::{Device, DeviceError};
#[cfg(feature = "emulator")]
pub use emulator::{Emulator, FiberOrder};
