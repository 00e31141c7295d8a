//! CUDA kernels for training decoder language models, and the commands that run them.
//!
//! An op becomes [`Command`]s: launches of kernels from `kernels/*.cuh`, matrix products, copies. They are plain data, which
//! can be inspected without a card. A [`Device`] turns them into calls of a [`Driver`]: that of a card, or the `Emulator`
//! (feature `emulator`), which runs the same kernels on the processor.

#![warn(missing_docs)]

#[cfg(feature = "cuda")]
mod card;
mod command;
mod device;
mod driver;
#[cfg(feature = "emulator")]
mod emulator;
mod sources;

#[cfg(feature = "cuda")]
pub use card::{Card, CardInfo, cards};
pub use command::{
    Arguments, Command, Copy, ElementType, Elements, Fill, Launch, Matmul, MatrixOperand, Memory,
    Span,
};
pub use device::{Device, Recording};
pub use driver::{Address, DeviceError, Driver, Graph, Kernel, LaunchShape, Product};
#[cfg(feature = "emulator")]
pub use emulator::{CallCounts, Emulator, FiberOrder};
pub use sources::{SOURCES, SourceFile};
