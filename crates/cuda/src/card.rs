//! A card with the CUDA driver, cuBLASLt and NVRTC, which are loaded when it is opened.

mod compiler;
mod products;

use std::ffi::{CString, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};

use cudarc::driver::{DriverError, result, sys};
use cudarc::{cublaslt, nvrtc};

use crate::driver::{Address, DeviceError, Driver, Graph, Kernel, LaunchShape, Product};
use crate::sources::SourceFile;
use products::Products;

/// Shared memory of a block in bytes that a kernel has without asking for more.
const DEFAULT_SHARED_BYTES: u32 = 48 << 10;

/// A card that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CardInfo {
    /// Index, as in `cuda:INDEX`.
    pub index: usize,
    /// Name.
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub compute_capability: (u32, u32),
    /// Memory in bytes.
    pub memory: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
}

/// Returns the cards of this machine.
///
/// # Errors
/// If there is no driver, or it fails.
pub fn cards() -> Result<Vec<CardInfo>, DeviceError> {
    check_libraries(&[DRIVER])?;
    result::init().map_err(of_driver("initialization"))?;
    let count = result::device::get_count().map_err(of_driver("number of cards"))?;
    (0..count)
        .map(|index| Ok(Handle::new(index)?.info))
        .collect()
}

/// A library that is loaded at run time, and a function that says whether it is found.
type Library = (&'static str, fn() -> bool);

// SAFETY of all three: loading the library runs no code but its initialization.
const DRIVER: Library = ("the CUDA driver (libcuda)", || unsafe {
    sys::is_culib_present()
});
const NVRTC: Library = ("NVRTC (libnvrtc)", || unsafe {
    nvrtc::sys::is_culib_present()
});
const CUBLASLT: Library = ("cuBLASLt (libcublasLt)", || unsafe {
    cublaslt::sys::is_culib_present()
});

/// # Errors
/// If one of the libraries is missing.
fn check_libraries(libraries: &[Library]) -> Result<(), DeviceError> {
    match libraries.iter().find(|(_, is_present)| !is_present()) {
        None => Ok(()),
        Some((name, _)) => Err(DeviceError::Command {
            command: "CUDA",
            problem: format!(
                "{name} is not found; install it, or add its folder to LD_LIBRARY_PATH"
            ),
        }),
    }
}

/// Returns the error of a failed call of the driver.
fn of_driver(command: &'static str) -> impl Fn(DriverError) -> DeviceError {
    move |error| {
        let text = error.error_string();
        let problem = text.map_or_else(
            |_| format!("{error:?}"),
            |text| text.to_string_lossy().into_owned(),
        );
        DeviceError::Command { command, problem }
    }
}

/// A device of the driver.
struct Handle {
    device: sys::CUdevice,
    info: CardInfo,
}

impl Handle {
    /// # Errors
    /// If there is no such card.
    fn new(index: c_int) -> Result<Self, DeviceError> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
            CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
        };
        let failed = of_driver("properties of a card");
        let device = result::device::get(index).map_err(&failed)?;
        // SAFETY: the device is the driver's.
        let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
        let number = |which| attribute(which).map(c_int::cast_unsigned).map_err(&failed);
        // SAFETY: as above.
        let memory = unsafe { result::device::total_mem(device) }.map_err(&failed)?;
        let info = CardInfo {
            index: index as usize,
            name: result::device::get_name(device).map_err(&failed)?,
            compute_capability: (number(MAJOR)?, number(MINOR)?),
            memory: memory as u64,
            multiprocessors: number(MULTIPROCESSORS)?,
        };
        Ok(Self { device, info })
    }
}

/// A card, with one stream on which all calls are made.
#[derive(Debug)]
pub struct Card {
    info: CardInfo,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: Vec<(&'static str, sys::CUmodule)>,
    kernels: Vec<LoadedKernel>,
    graphs: Vec<Option<sys::CUgraphExec>>,
    products: Products,
    cache: PathBuf,
}

#[derive(Debug)]
struct LoadedKernel {
    name: &'static str,
    function: sys::CUfunction,
    /// Dynamic shared memory that it may use.
    shared_bytes: u32,
}

// SAFETY: the driver's handles may be used from any thread in which the context is current, and each call makes it so.
unsafe impl Send for Card {}

impl Card {
    /// Opens a card. Compiled kernels and choices of matrix products are kept in files of the folder `cache`.
    ///
    /// # Errors
    /// If there is no such card, a library is missing, or the driver fails.
    pub fn open(index: usize, cache: &Path) -> Result<Self, DeviceError> {
        check_libraries(&[DRIVER, NVRTC, CUBLASLT])?;
        let failed = of_driver("opening a card");
        result::init().map_err(&failed)?;
        let count = result::device::get_count().map_err(&failed)?;
        let ordinal = c_int::try_from(index).ok().filter(|index| *index < count);
        let ordinal = ordinal.ok_or_else(|| DeviceError::Command {
            command: "CUDA",
            problem: format!("there is no card {index}: this machine has {count}"),
        })?;
        let Handle { device, info } = Handle::new(ordinal)?;
        // SAFETY: the device exists; the context is released when the card is dropped.
        let context = unsafe {
            let context = result::primary_ctx::retain(device).map_err(&failed)?;
            result::ctx::set_current(context).map_err(&failed)?;
            context
        };
        let stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(&failed)?;
        let products = Products::new(&info, cache)?;
        Ok(Self {
            info,
            context,
            stream,
            modules: Vec::new(),
            kernels: Vec::new(),
            graphs: Vec::new(),
            products,
            cache: cache.to_owned(),
        })
    }

    /// Returns its properties.
    pub fn info(&self) -> &CardInfo {
        &self.info
    }

    /// Makes the context of the card that of the thread.
    fn enter(&self) -> Result<(), DeviceError> {
        // SAFETY: the context lives as long as the card.
        unsafe { result::ctx::set_current(self.context) }.map_err(of_driver("entering a card"))
    }

    /// Returns the compiled file.
    fn module(&mut self, file: &'static SourceFile) -> Result<sys::CUmodule, DeviceError> {
        if let Some((_, module)) = self.modules.iter().find(|(name, _)| *name == file.name) {
            return Ok(*module);
        }
        let code = compiler::load_or_compile(file, self.info.compute_capability, &self.cache)?;
        // SAFETY: the code is a cubin, which the driver copies.
        let module = unsafe { result::module::load_data(code.as_ptr().cast()) };
        let module = module.map_err(of_driver(file.name))?;
        self.modules.push((file.name, module));
        Ok(module)
    }
}

impl Driver for Card {
    fn allocate(&mut self, bytes: usize) -> Result<Address, DeviceError> {
        self.enter()?;
        // SAFETY: the context is current.
        let result = unsafe { result::malloc_sync(bytes.max(1)) };
        match result {
            Ok(address) => Ok(Address(address)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                Err(DeviceError::OutOfMemory { bytes })
            }
            Err(error) => Err(of_driver("allocation")(error)),
        }
    }

    fn free(&mut self, address: Address) -> Result<(), DeviceError> {
        self.synchronize()?;
        // SAFETY: no call that accesses the memory is pending, and none is made afterwards.
        unsafe { result::free_sync(address.0) }.map_err(of_driver("freeing memory"))
    }

    fn upload(&mut self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: `Device` checks that the bytes lie within an allocation. From pageable memory, the call returns when the
        // bytes have been copied to a buffer of the driver.
        unsafe { result::memcpy_htod_async(to.0, bytes, self.stream) }.map_err(of_driver("upload"))
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: as for uploads; the slice is not used before the stream has been waited for.
        unsafe { result::memcpy_dtoh_async(bytes, from.0, self.stream) }
            .map_err(of_driver("download"))?;
        self.synchronize()
    }

    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: `Device` checks that both lie within allocations.
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.stream) }
            .map_err(of_driver("copy"))
    }

    fn fill(&mut self, to: Address, pattern: u32, copies: usize) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: as for copies.
        let result = unsafe { sys::cuMemsetD32Async(to.0, pattern, copies, self.stream) };
        result.result().map_err(of_driver("fill"))
    }

    fn load(&mut self, name: &'static str) -> Result<Kernel, DeviceError> {
        self.enter()?;
        let failed = of_driver(name);
        let file = SourceFile::of_kernel(name).ok_or_else(|| DeviceError::Command {
            command: name,
            problem: "there is no such kernel".to_owned(),
        })?;
        let module = self.module(file)?;
        let symbol = CString::new(name).expect("a name without zeros");
        // SAFETY: the module is loaded for the life of the context.
        let function = unsafe { result::module::get_function(module, symbol) }.map_err(failed)?;
        self.kernels.push(LoadedKernel {
            name,
            function,
            shared_bytes: DEFAULT_SHARED_BYTES,
        });
        Ok(Kernel(self.kernels.len() - 1))
    }

    fn launch(
        &mut self,
        kernel: Kernel,
        shape: LaunchShape,
        arguments: &[u8],
    ) -> Result<(), DeviceError> {
        self.enter()?;
        let kernel = &mut self.kernels[kernel.0];
        let failed = of_driver(kernel.name);
        if shape.shared_bytes > kernel.shared_bytes {
            use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SHARED;
            let bytes = c_int::try_from(shape.shared_bytes).unwrap_or(c_int::MAX);
            // SAFETY: the function is loaded.
            unsafe { result::function::set_function_attribute(kernel.function, SHARED, bytes) }
                .map_err(&failed)?;
            kernel.shared_bytes = shape.shared_bytes;
        }
        // Aligned as the struct.
        let words = arguments.as_chunks().0.iter();
        let mut words: Vec<u64> = words.map(|word| u64::from_ne_bytes(*word)).collect();
        let mut parameters = [words.as_mut_ptr().cast::<c_void>()];
        let one = |x: c_uint| (x, 1, 1);
        // SAFETY: the kernel reads the struct of its arguments, whose layout `Arguments` has, during this call, and
        // accesses the elements whose addresses it contains.
        unsafe {
            result::launch_kernel(
                kernel.function,
                one(shape.blocks),
                one(shape.threads),
                shape.shared_bytes,
                self.stream,
                &mut parameters,
            )
        }
        .map_err(failed)
    }

    fn prepare(&mut self, product: &Product, operands: [Address; 3]) -> Result<(), DeviceError> {
        self.enter()?;
        self.products.prepare(product, operands, self.stream)
    }

    fn multiply(&mut self, product: &Product, operands: [Address; 3]) -> Result<(), DeviceError> {
        self.enter()?;
        self.products.multiply(product, operands, self.stream)
    }

    fn begin_capture(&mut self) -> Result<(), DeviceError> {
        use sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as THREAD_LOCAL;
        self.enter()?;
        // SAFETY: the stream lives as long as the card.
        unsafe { result::stream::begin_capture(self.stream, THREAD_LOCAL) }
            .map_err(of_driver("capture"))
    }

    fn end_capture(&mut self) -> Result<Graph, DeviceError> {
        self.enter()?;
        let failed = of_driver("capture");
        // SAFETY: the stream is the card's; the graph is not used after its instantiation.
        let executable = unsafe {
            let graph = result::stream::end_capture(self.stream).map_err(&failed)?;
            let flags = sys::CUgraphInstantiate_flags(0);
            let executable = result::graph::instantiate(graph, flags);
            result::graph::destroy(graph).map_err(&failed)?;
            executable.map_err(&failed)?
        };
        self.graphs.push(Some(executable));
        Ok(Graph(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: Graph) -> Result<(), DeviceError> {
        self.enter()?;
        let executable = self.graphs[graph.0].expect("a graph that was forgotten");
        // SAFETY: the graph was instantiated, and its memory is allocated.
        unsafe { result::graph::launch(executable, self.stream) }.map_err(of_driver("graph"))
    }

    fn forget(&mut self, graph: Graph) {
        let Some(executable) = self.graphs[graph.0].take() else {
            return;
        };
        // A failed device reports its failure at the next call that returns a result.
        let _ = self.synchronize();
        // SAFETY: the graph is not running, and its handle is gone.
        let _ = unsafe { result::graph::exec_destroy(executable) };
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: the stream lives as long as the card.
        unsafe { result::stream::synchronize(self.stream) }.map_err(of_driver("a command before"))
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // The process may be ending because the device has failed: then nothing can be released.
        if self.synchronize().is_err() {
            return;
        }
        for graph in 0..self.graphs.len() {
            self.forget(Graph(graph));
        }
        self.products.free();
        // SAFETY: nothing is running on the stream, and no handle is used afterwards.
        unsafe {
            for (_, module) in &self.modules {
                let _ = result::module::unload(*module);
            }
            let _ = result::stream::destroy(self.stream);
            if let Ok(device) = result::device::get(self.info.index as c_int) {
                let _ = result::primary_ctx::release(device);
            }
        }
    }
}
