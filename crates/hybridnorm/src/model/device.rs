//! Kinds of executors of a model.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::exec::{Cpu, Executor, Reference};
use crate::plan::Target;

/// Executor of a model's programs, and its precision.
///
/// ```
/// use hybridnorm::Device;
///
/// assert_eq!("cpu".parse(), Ok(Device::Cpu));
/// assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
/// assert_eq!("cuda:1".parse::<Device>().map(|device| device.to_string()), Ok("cuda:1".to_owned()));
/// assert!("gpu".parse::<Device>().is_err());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// CPU kernels, in the precision of the programs.
    #[default]
    Cpu,
    /// Plain loops in double precision: slow; the reference for testing kernels.
    Reference,
    /// The card with this index, with the feature `cuda`.
    Cuda(usize),
    /// CUDA kernels, emulated on the CPU.
    #[cfg(test)]
    Emulator,
}

impl Device {
    /// # Errors
    /// If the device cannot be used.
    pub(super) fn executor(self) -> Result<Box<dyn Executor>> {
        match self {
            Self::Cpu => Ok(Box::new(Cpu::new())),
            Self::Reference => Ok(Box::new(Reference::new())),
            Self::Cuda(index) => card(index),
            #[cfg(test)]
            Self::Emulator => {
                let emulator = hybridnorm_cuda::Emulator::default();
                Ok(Box::new(crate::exec::OnDevice::new(emulator)?))
            }
        }
    }

    /// Returns the executor that its programs are planned for.
    pub(crate) fn target(self) -> Target {
        match self {
            Self::Cpu | Self::Reference => Target::Cpu,
            Self::Cuda(_) => Target::Device,
            #[cfg(test)]
            Self::Emulator => Target::Device,
        }
    }
}

#[cfg(feature = "cuda")]
fn card(index: usize) -> Result<Box<dyn Executor>> {
    let cache = crate::files::cache_folder()?.join("cuda");
    let card = hybridnorm_cuda::Card::open(index, &cache);
    let card = card.map_err(|error| Error::External(error.to_string()))?;
    Ok(Box::new(crate::exec::OnDevice::new(card)?))
}

#[cfg(not(feature = "cuda"))]
fn card(index: usize) -> Result<Box<dyn Executor>> {
    Err(Error::External(format!(
        "cuda:{index}: this program was built without CUDA; build it with --features cuda"
    )))
}

/// A device that was asked for, by a name that none has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected cpu, cuda or cuda:INDEX")]
pub struct UnknownDevice;

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownDevice> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            name => {
                let index = name
                    .strip_prefix("cuda:")
                    .and_then(|index| index.parse().ok());
                index.map(Self::Cuda).ok_or(UnknownDevice)
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Reference => write!(f, "reference"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            #[cfg(test)]
            Self::Emulator => write!(f, "emulator"),
        }
    }
}
