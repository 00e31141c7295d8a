//! Parameters by name: listing, reading, replacing.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Gradients, Shape, Tensor, TensorData};

use crate::error::{Error, Result};

/// What a parameter is, as far as weight decay and reports are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Token embedding (also the tied head).
    Embedding,
    /// Output head of its own.
    Head,
    /// A projection inside attention.
    Attention,
    /// A projection inside a feed-forward.
    FeedForward,
    /// What gives the logits of a mixture's experts.
    Router,
    /// What is added to the scores where experts are chosen. It moves with their load and has no
    /// gradient.
    SelectionBias,
    /// Gain, bias, α or shift of a norm.
    Norm,
    /// A learned factor: residual scale, head gain, temperature.
    Scale,
}

impl Kind {
    /// Tells the kind from the name.
    pub fn of(name: &str) -> Self {
        let leaf = name.rsplit('.').next().unwrap_or(name);
        match leaf {
            "embedding" => Self::Embedding,
            "head" => Self::Head,
            "qkv" | "out" | "latents" | "q_up" | "kv_up" => Self::Attention,
            "up" | "down" => Self::FeedForward,
            "router" => Self::Router,
            "selection_bias" => Self::SelectionBias,
            "gain" | "bias" | "alpha" | "shift" => Self::Norm,
            _ => Self::Scale,
        }
    }

    /// Whether gradients move it.
    pub fn is_trained(self) -> bool {
        self != Self::SelectionBias
    }
}

/// The block that a parameter is in (0-based; `None` outside the blocks), and its role: `qkv`,
/// `latents`, `q_up`, `kv_up`, `out`, `up`, `down`, `router`, `selection_bias`, `embedding`, `head`, `norm` or `scale`.
pub fn place(name: &str) -> (Option<usize>, &str) {
    let mut parts = name.split('.');
    let block = match parts.next() {
        Some("blocks") => parts.next().and_then(|index| index.parse().ok()),
        _ => None,
    };
    let role = match Kind::of(name) {
        Kind::Norm => "norm",
        Kind::Scale => "scale",
        _ => name.rsplit('.').next().unwrap_or(name),
    };
    (block, role)
}

/// Values of a parameter on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// Row-major elements.
    pub data: Vec<f32>,
}

/// Calls `f(name, parameter)` for every parameter, in a fixed order.
pub fn for_each(model: &impl Module, f: impl FnMut(&str, ParamRef<'_>)) {
    model.visit(&mut Walk {
        path: Path::default(),
        f,
    });
}

/// A parameter of any rank as seen by [`for_each`].
pub enum ParamRef<'a> {
    /// A vector.
    Vector(&'a Param<Tensor<1>>),
    /// A matrix.
    Matrix(&'a Param<Tensor<2>>),
}

impl ParamRef<'_> {
    /// The parameter as a vector; shares memory and gradient history.
    pub fn flat(&self) -> Tensor<1> {
        match self {
            Self::Vector(param) => param.val(),
            Self::Matrix(param) => {
                let tensor = param.val();
                let n = tensor.shape().num_elements();
                tensor.reshape([n])
            }
        }
    }

    /// Removes this parameter's gradient from what a backward pass gave, as a vector.
    pub fn take_gradient(&self, gradients: &mut Gradients) -> Option<Tensor<1>> {
        match self {
            Self::Vector(param) => param.val().grad_remove(gradients),
            Self::Matrix(param) => {
                let gradient = param.val().grad_remove(gradients)?;
                let n = gradient.shape().num_elements();
                Some(gradient.reshape([n]))
            }
        }
    }

    /// Sizes of the dimensions.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Vector(param) => param.val().dims().to_vec(),
            Self::Matrix(param) => param.val().dims().to_vec(),
        }
    }
}

/// The names of all parameters, in a fixed order.
pub fn names(model: &impl Module) -> Vec<String> {
    let mut names = Vec::new();
    for_each(model, |name, _| names.push(name.to_owned()));
    names
}

/// Copies every parameter to the host.
pub fn values(model: &impl Module) -> BTreeMap<String, Values> {
    let mut all = BTreeMap::new();
    for_each(model, |name, param| {
        let data = param.flat().into_data_as::<f32>();
        let data = data.try_into_vec::<f32>().expect("converted to f32");
        let shape = param.shape();
        all.insert(name.to_owned(), Values { shape, data });
    });
    all
}

/// Replaces every parameter's values; `values` must hold all of them in the right shape.
///
/// # Errors
/// [`Error::Config`] naming the parameter that is missing, unknown or of another shape.
pub fn load<M: Module>(model: M, mut values: BTreeMap<String, Values>) -> Result<M> {
    let mut problem = None;
    let mut take = |name: &str, shape: &[usize]| match values.remove(name) {
        Some(found) if found.shape == shape => Some(found.data),
        Some(found) => {
            problem.get_or_insert(format!(
                "parameter {name} has shape {:?}, expected {shape:?}",
                found.shape
            ));
            None
        }
        None => {
            problem.get_or_insert(format!("parameter {name} is missing"));
            None
        }
    };
    let model = map(model, |name, tensor| {
        let shape: Vec<usize> = tensor.shape().as_slice().to_vec();
        match take(name, &shape) {
            Some(data) => tensor.with_data(TensorData::new(data, shape)),
            None => tensor,
        }
    });
    if let Some(problem) = problem {
        return Err(Error::config(problem));
    }
    match values.into_keys().next() {
        Some(name) => Err(Error::config(format!(
            "parameter {name} is not one of this model's"
        ))),
        None => Ok(model),
    }
}

/// Replaces the values of those parameters that `values` holds in the right shape; gives the names of
/// the others too.
pub fn load_shared<M: Module>(model: M, mut values: BTreeMap<String, Values>) -> (M, Vec<String>) {
    let mut others = Vec::new();
    let model = map(model, |name, tensor| {
        let shape: Vec<usize> = tensor.shape().as_slice().to_vec();
        match values.remove(name).filter(|found| found.shape == shape) {
            Some(found) => tensor.with_data(TensorData::new(found.data, shape)),
            None => {
                others.push(name.to_owned());
                tensor
            }
        }
    });
    (model, others)
}

/// A tensor of any rank as seen by [`map`].
pub enum AnyTensor {
    /// A vector.
    Vector(Tensor<1>),
    /// A matrix.
    Matrix(Tensor<2>),
}

impl AnyTensor {
    /// Sizes of the dimensions.
    pub fn shape(&self) -> Shape {
        match self {
            Self::Vector(x) => x.shape(),
            Self::Matrix(x) => x.shape(),
        }
    }

    /// Other values on the same device in the same precision; a fresh leaf of the graph.
    pub fn with_data(self, data: TensorData) -> Self {
        match self {
            Self::Vector(x) => Self::Vector(Tensor::from_data(data, (&x.device(), x.dtype()))),
            Self::Matrix(x) => Self::Matrix(Tensor::from_data(data, (&x.device(), x.dtype()))),
        }
    }

    /// The same values in another precision; a fresh leaf of the graph.
    pub fn cast(self, dtype: DType) -> Self {
        match self {
            Self::Vector(x) => Self::Vector(x.cast(dtype).detach()),
            Self::Matrix(x) => Self::Matrix(x.cast(dtype).detach()),
        }
    }

    /// The elements as a vector outside the graph, and a tensor without rows to stand in their place
    /// until [`AnyTensor::put`]: so the model holds them no more, and they can be changed where they are.
    pub fn take(self) -> (Self, Tensor<1>) {
        let n = self.shape().num_elements();
        match self {
            Self::Vector(x) => {
                let empty = Tensor::empty([0], (&x.device(), x.dtype()));
                (Self::Vector(empty), x.without_autodiff())
            }
            Self::Matrix(x) => {
                let empty = Tensor::empty([0, x.dims()[1]], (&x.device(), x.dtype()));
                (Self::Matrix(empty), x.without_autodiff().reshape([n]))
            }
        }
    }

    /// Elements in the place that [`AnyTensor::take`] left; a fresh leaf of the graph if that was one.
    pub fn put(self, flat: Tensor<1>) -> Self {
        let back = |x: Tensor<1>, autodiff| if autodiff { x.autodiff() } else { x };
        match self {
            Self::Vector(x) => Self::Vector(back(flat, x.is_autodiff())),
            Self::Matrix(x) => {
                let columns = x.dims()[1];
                let rows = flat.dims()[0] / columns;
                Self::Matrix(back(flat, x.is_autodiff()).reshape([rows, columns]))
            }
        }
    }
}

/// Replaces every parameter by `f(name, tensor)`, which must keep the shape.
pub fn map<M: Module>(model: M, f: impl FnMut(&str, AnyTensor) -> AnyTensor) -> M {
    model.map(&mut Walk {
        path: Path::default(),
        f,
    })
}

struct Walk<F> {
    path: Path,
    f: F,
}

#[derive(Default)]
struct Path(Vec<String>);

/// How Burn announces the variant of an enum.
const VARIANT: &str = "Enum:";

impl Path {
    /// Names of variants are no part of a parameter's name.
    fn enter(&mut self, name: &str, container: &str) {
        if !container.starts_with(VARIANT) {
            self.0.push(name.to_owned());
        }
    }

    fn exit(&mut self, container: &str) {
        if !container.starts_with(VARIANT) {
            self.0.pop();
        }
    }

    fn name(&self) -> String {
        self.0.join(".")
    }
}

const RANKS: &str = "this model has vectors and matrices only";

impl<F: FnMut(&str, ParamRef<'_>)> ModuleVisitor for Walk<F> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let param: &dyn std::any::Any = param;
        let param = match D {
            1 => ParamRef::Vector(param.downcast_ref().expect(RANKS)),
            _ => ParamRef::Matrix(param.downcast_ref().expect(RANKS)),
        };
        (self.f)(&self.path.name(), param);
    }
}

impl<F: FnMut(&str, AnyTensor) -> AnyTensor> ModuleMapper for Walk<F> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.name();
        param.map(|tensor| {
            let requires_grad = tensor.is_require_grad();
            let tensor: Box<dyn std::any::Any> = Box::new(tensor);
            let any = match D {
                1 => AnyTensor::Vector(*tensor.downcast().expect(RANKS)),
                _ => AnyTensor::Matrix(*tensor.downcast().expect(RANKS)),
            };
            let mapped: Box<dyn std::any::Any> = match (self.f)(&name, any) {
                AnyTensor::Vector(x) => Box::new(x),
                AnyTensor::Matrix(x) => Box::new(x),
            };
            let mapped: Tensor<D> = *mapped.downcast().expect("the mapping keeps the rank");
            mapped.set_require_grad(requires_grad)
        })
    }
}
