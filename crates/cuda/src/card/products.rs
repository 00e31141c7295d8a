//! Matrix products by cuBLASLt, with an algorithm for each shape that is chosen once, by measurement, and stored.
//!
//! Algorithms sum in different orders, so that a choice at each start would change results in the last bits. The file of
//! choices makes runs on a card repeat bit by bit; it depends on the card and the version of the library.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys::{self, cublasComputeType_t, cudaDataType};
use cudarc::driver::sys::{CUevent_flags, CUstream};
use cudarc::driver::{DriverError, result as driver};

use super::{CardInfo, of_driver};
use crate::command::ElementType;
use crate::driver::{Address, DeviceError, Product};

/// Memory for partial sums.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Algorithms that are measured for a shape.
const CANDIDATES: usize = 8;
/// Runs of each; the fastest counts.
const RUNS: usize = 5;

/// Words of an algorithm, which the library does not explain.
type Algorithm = [u64; 8];

/// Products that were prepared.
#[derive(Debug)]
pub(super) struct Products {
    handle: sys::cublasLtHandle_t,
    workspace: u64,
    plans: HashMap<Product, Plan>,
    choices: Choices,
}

/// Descriptors of a product, and its algorithm.
#[derive(Debug)]
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    accumulate: bool,
}

fn of_library(error: CublasError) -> DeviceError {
    DeviceError::Command {
        command: "matrix product",
        problem: format!("{:?}", error.0),
    }
}

fn data_type(element_type: ElementType) -> cudaDataType {
    match element_type {
        ElementType::F32 => cudaDataType::CUDA_R_32F,
        ElementType::Bf16 => cudaDataType::CUDA_R_16BF,
        other => panic!("a matrix of {other:?}"),
    }
}

impl Products {
    /// Creates the library's handle in the current context.
    ///
    /// # Errors
    /// If the library or the driver fails.
    pub(super) fn new(card: &CardInfo, cache: &Path) -> Result<Self, DeviceError> {
        // SAFETY: the context is current; the library has a version.
        let (workspace, version) = unsafe {
            let workspace = driver::malloc_sync(WORKSPACE_BYTES).map_err(of_driver("workspace"))?;
            (workspace, sys::cublasLtGetVersion())
        };
        let name: String = card
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let path = cache.join(format!("products-{name}-{version}.txt"));
        Ok(Self {
            handle: lt::create_handle().map_err(of_library)?,
            workspace,
            plans: HashMap::new(),
            choices: Choices::load(path),
        })
    }

    /// Frees handles and memory, in the current context.
    pub(super) fn free(&mut self) {
        for (_, plan) in self.plans.drain() {
            plan.free();
        }
        // SAFETY: nothing uses either afterwards.
        unsafe {
            let _ = lt::destroy_handle(self.handle);
            let _ = driver::free_sync(self.workspace);
        }
    }

    /// Prepares a product: chooses its algorithm, unless a choice is stored.
    ///
    /// # Errors
    /// If the library has no algorithm, or the driver fails.
    pub(super) fn prepare(
        &mut self,
        product: &Product,
        operands: [Address; 3],
        stream: CUstream,
    ) -> Result<(), DeviceError> {
        if self.plans.contains_key(product) {
            return Ok(());
        }
        let mut plan = Plan::new(product).map_err(of_library)?;
        match self.choices.find(product) {
            Some(words) => plan.algorithm.data = words,
            None => {
                let result = self.choose(product, &mut plan, operands, stream);
                if let Err(error) = result {
                    plan.free();
                    return Err(error);
                }
                self.choices.add(product, plan.algorithm.data);
            }
        }
        self.plans.insert(*product, plan);
        Ok(())
    }

    /// Measures the algorithms that the library proposes, with a result of its own.
    fn choose(
        &self,
        product: &Product,
        plan: &mut Plan,
        [a, b, _]: [Address; 3],
        stream: CUstream,
    ) -> Result<(), DeviceError> {
        let candidates = self.candidates(plan).map_err(of_library)?;
        let failed = of_driver("choice of a matrix product");
        let bytes = product.leading[2] * product.n * product.result.bytes();
        // SAFETY: the context is current; events and memory are freed below, when nothing uses them.
        let (result, events) = unsafe {
            let result = driver::malloc_sync(bytes).map_err(&failed)?;
            let event = || driver::event::create(CUevent_flags::CU_EVENT_DEFAULT);
            (
                Address(result),
                [event().map_err(&failed)?, event().map_err(&failed)?],
            )
        };
        let [started, ended] = events;
        let mut fastest = (f32::INFINITY, None);
        for algorithm in candidates {
            plan.algorithm = algorithm;
            for _ in 0..RUNS {
                // SAFETY: the events and the stream exist.
                let run = || -> Result<f32, DriverError> {
                    unsafe {
                        driver::event::record(started, stream)?;
                        let multiplied = self.run(plan, [a, b, result], stream);
                        driver::event::record(ended, stream)?;
                        driver::event::synchronize(ended)?;
                        let time = driver::event::elapsed(started, ended)?;
                        // A candidate may fail where another does not.
                        Ok(multiplied.map_or(f32::INFINITY, |()| time))
                    }
                };
                let time = run().map_err(&failed)?;
                if time < fastest.0 {
                    fastest = (time, Some(algorithm));
                }
            }
        }
        // SAFETY: as above.
        unsafe {
            let _ = driver::event::destroy(started);
            let _ = driver::event::destroy(ended);
            let _ = driver::free_sync(result.0);
        }
        plan.algorithm = fastest.1.ok_or_else(|| DeviceError::Command {
            command: "matrix product",
            problem: format!("cuBLASLt has no algorithm for {product:?}"),
        })?;
        Ok(())
    }

    /// Returns algorithms whose result does not depend on the order in which blocks end.
    fn candidates(&self, plan: &Plan) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t::{
            CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as WORKSPACE,
            CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK as SCHEMES,
        };
        let workspace = WORKSPACE_BYTES as u64;
        // Partial sums are added in the workspace, not in the result.
        let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let preference = lt::create_matmul_pref()?;
        let mut found =
            [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit() }; CANDIDATES];
        let mut count = 0;
        let [a, b, c] = plan.layouts;
        // SAFETY: the attributes have the sizes that the library documents; it writes `count` results.
        unsafe {
            let set = |attribute, value: *const c_void, size| {
                lt::set_matmul_pref_attribute(preference, attribute, value, size)
            };
            let result = set(WORKSPACE, (&raw const workspace).cast(), size_of::<u64>())
                .and_then(|()| set(SCHEMES, (&raw const schemes).cast(), size_of::<u32>()))
                .and_then(|()| {
                    let found = found.as_mut_ptr().cast();
                    sys::cublasLtMatmulAlgoGetHeuristic(
                        self.handle,
                        plan.product,
                        a,
                        b,
                        c,
                        c,
                        preference,
                        CANDIDATES as i32,
                        found,
                        &raw mut count,
                    )
                    .result()
                });
            let _ = lt::destroy_matmul_pref(preference);
            result?;
            let results = found
                .iter()
                .take(count as usize)
                .map(|result| result.assume_init());
            let works =
                |result: &sys::cublasLtMatmulHeuristicResult_t| result.state.result().is_ok();
            Ok(results.filter(works).map(|result| result.algo).collect())
        }
    }

    /// Computes a product that was prepared.
    ///
    /// # Errors
    /// If the library fails.
    pub(super) fn multiply(
        &self,
        product: &Product,
        operands: [Address; 3],
        stream: CUstream,
    ) -> Result<(), DeviceError> {
        let plan = self
            .plans
            .get(product)
            .expect("a product that was prepared");
        self.run(plan, operands, stream).map_err(of_library)
    }

    fn run(
        &self,
        plan: &Plan,
        operands: [Address; 3],
        stream: CUstream,
    ) -> Result<(), CublasError> {
        let [alpha, beta] = [1.0f32, if plan.accumulate { 1.0 } else { 0.0 }];
        let [a, b, c] = operands.map(|address| address.0 as *mut c_void);
        let [of_a, of_b, of_c] = plan.layouts;
        // SAFETY: descriptors and workspace live as long as `self`, and `Device` checks that operands lie within
        // allocations.
        unsafe {
            lt::matmul(
                self.handle,
                plan.product,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                a,
                of_a,
                b,
                of_b,
                c,
                of_c,
                c,
                of_c,
                &raw const plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cast(),
            )
        }
    }
}

impl Plan {
    fn new(product: &Product) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t::{
            CUBLASLT_MATMUL_DESC_TRANSA as TRANSPOSE_A, CUBLASLT_MATMUL_DESC_TRANSB as TRANSPOSE_B,
        };
        let Product { m, n, k, .. } = *product;
        // As stored, before transposition.
        let sizes = [(m, k), (k, n), (m, n)];
        let [a, b] = product.transposed;
        let types = [product.operands, product.operands, product.result];
        let layout = |i: usize, is_transposed: bool| {
            let (rows, columns) = sizes[i];
            let (rows, columns) = if is_transposed {
                (columns, rows)
            } else {
                (rows, columns)
            };
            lt::create_matrix_layout(
                data_type(types[i]),
                rows as u64,
                columns as u64,
                product.leading[i] as i64,
            )
        };
        let layouts = [layout(0, a)?, layout(1, b)?, layout(2, false)?];
        // Products in single precision are not rounded to fewer bits (TF32).
        let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let descriptor = lt::create_matmul_desc(compute, cudaDataType::CUDA_R_32F)?;
        for (attribute, is_transposed) in [(TRANSPOSE_A, a), (TRANSPOSE_B, b)] {
            // `CUBLAS_OP_T`, or `CUBLAS_OP_N`.
            let operation = i32::from(is_transposed);
            let value = (&raw const operation).cast();
            // SAFETY: the attribute has the size of an `int`.
            unsafe {
                lt::set_matmul_desc_attribute(descriptor, attribute, value, size_of::<i32>())?
            };
        }
        Ok(Self {
            product: descriptor,
            layouts,
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            accumulate: product.accumulate,
        })
    }

    fn free(self) {
        // SAFETY: nothing uses the descriptors afterwards.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.product);
            for layout in self.layouts {
                let _ = lt::destroy_matrix_layout(layout);
            }
        }
    }
}

/// Choices on disk: a line for each product.
#[derive(Debug)]
struct Choices {
    path: PathBuf,
    lines: HashMap<String, Algorithm>,
}

impl Choices {
    /// Reads a file; lines that are not of this form are ignored, and so is a file that cannot be read.
    fn load(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let line = |line: &str| {
            let (product, words) = line.split_once(" = ")?;
            let words = words
                .split(' ')
                .map(|word| u64::from_str_radix(word, 16).ok());
            let words: Vec<u64> = words.collect::<Option<_>>()?;
            Some((product.to_owned(), words.try_into().ok()?))
        };
        let lines = text.lines().filter_map(line).collect();
        Self { path, lines }
    }

    fn key(product: &Product) -> String {
        let Product {
            m,
            n,
            k,
            transposed: [a, b],
            leading: [of_a, of_b, of_c],
            ..
        } = *product;
        let (operands, result, accumulate) = (product.operands, product.result, product.accumulate);
        format!("{m} {n} {k} {a} {b} {of_a} {of_b} {of_c} {operands:?} {result:?} {accumulate}")
    }

    fn find(&self, product: &Product) -> Option<Algorithm> {
        self.lines.get(&Self::key(product)).copied()
    }

    /// Adds a choice, to the file too if that can be written.
    fn add(&mut self, product: &Product, algorithm: Algorithm) {
        let key = Self::key(product);
        let mut line = format!("{key} =");
        for word in algorithm {
            let _ = write!(line, " {word:x}");
        }
        line.push('\n');
        self.lines.insert(key, algorithm);
        let append = || -> std::io::Result<()> {
            if let Some(folder) = self.path.parent() {
                fs::create_dir_all(folder)?;
            }
            // A line is written at once, so that those of two processes do not mix.
            let mut file = fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(&self.path)?;
            file.write_all(line.as_bytes())
        };
        let _ = append();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new").join("products.txt");
        let product = |m, accumulate| Product {
            m,
            n: 5,
            k: 7,
            transposed: [false, true],
            leading: [8, 9, 10],
            operands: ElementType::Bf16,
            result: ElementType::F32,
            accumulate,
        };
        let mut choices = Choices::load(path.clone());
        choices.add(&product(3, false), [1, 2, 3, 4, 5, 6, 7, u64::MAX]);
        choices.add(&product(3, true), [8; 8]);
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .expect("the file");
        file.write_all(b"4 5 7 = cut o\n\n").expect("written");
        let read = Choices::load(path);
        assert_eq!(
            read.find(&product(3, false)),
            Some([1, 2, 3, 4, 5, 6, 7, u64::MAX])
        );
        assert_eq!(read.find(&product(3, true)), Some([8; 8]));
        assert_eq!(read.find(&product(4, false)), None);
        assert_eq!(read.lines.len(), 2);
    }
}
