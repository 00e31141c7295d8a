//! Builder of graphs.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::ops::{Add, Mul, Sub};
use std::sync::Arc;

use super::{Buffer, Graph, Node, Shape, Source, Type, ValueId};
use crate::ops::{self, Op};

/// Builder that records ops in the order in which they are called.
///
/// ```
/// use hybridnorm::exec::{Cpu, Executor, Reference, TensorRef};
/// use hybridnorm::graph::{Builder, Type};
/// use hybridnorm::ops::{self, Arguments};
/// use hybridnorm::passes::gradients;
/// use hybridnorm::plan::{Options, Program};
///
/// // Record, and differentiate.
/// let g = Builder::new();
/// let x = g.input("x", Type::f32([1, 3]));
/// let w = g.input("w", Type::f32([1, 3]));
/// let y = ops::linear(x, w) * 2.0;
/// let dw = gradients(y, &[w])[0].expect("y depends on w");
/// let outputs = [y.id(), dw.id()];
///
/// // Plan, and run on each executor.
/// let program = Program::new(g.finish(), &outputs, Options::default());
/// let inputs = [
///     ("x", TensorRef::F32(&[1.0, 2.0, 3.0])),
///     ("w", TensorRef::F32(&[0.5, 0.5, 1.0])),
/// ];
/// let executors: [Box<dyn Executor>; 2] = [Box::new(Cpu::new()), Box::new(Reference::new())];
/// for mut executor in executors {
///     executor.run(&program, Arguments::default(), &inputs)?;
///     assert_eq!(executor.output(&program, outputs[0]).into_f32(), [9.0]);
///     assert_eq!(executor.output(&program, outputs[1]).into_f32(), [2.0, 4.0, 6.0]);
/// }
/// # Ok::<(), hybridnorm::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Builder {
    graph: RefCell<Graph>,
    path: RefCell<Arc<str>>,
    segment: Cell<Option<usize>>,
    is_backward: Cell<bool>,
    /// Values of buffers declared so far.
    states: RefCell<HashMap<(Buffer, usize, Type), ValueId>>,
}

/// A symbolic value: a handle that is cheap to copy.
#[derive(Clone, Copy)]
pub struct Value<'g> {
    graph: &'g Builder,
    id: ValueId,
}

impl Builder {
    /// Creates a builder with an empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a value that the host provides before each run.
    pub fn input(&self, name: &str, ty: Type) -> Value<'_> {
        self.leaf(ty, Source::Input(name.into()))
    }

    /// Declares a value that reads `ty.elements()` elements of a buffer from `offset` on. Repeated declarations of the
    /// same range and type return the same value.
    pub fn state(&self, buffer: Buffer, offset: usize, ty: Type) -> Value<'_> {
        let mut states = self.states.borrow_mut();
        let id = states
            .entry((buffer, offset, ty))
            .or_insert_with(|| self.leaf(ty, Source::State(buffer, offset)).id);
        self.value(*id)
    }

    fn leaf(&self, ty: Type, source: Source) -> Value<'_> {
        let id = self.graph.borrow_mut().add_value(ty, source);
        self.value(id)
    }

    /// Returns the handle of a value.
    pub fn value(&self, id: ValueId) -> Value<'_> {
        Value { graph: self, id }
    }

    /// Records an op; returns its outputs.
    ///
    /// # Panics
    /// If the shapes of the inputs are invalid for the op.
    pub fn op<'g, const N: usize>(
        &'g self,
        op: impl Into<Op>,
        inputs: &[Value<'g>],
    ) -> [Value<'g>; N] {
        let op = op.into();
        let name = op.operation().name();
        let outputs = self.op_with_outputs(op, inputs);
        let found = outputs.len();
        outputs
            .try_into()
            .unwrap_or_else(|_| panic!("{name} has {found} outputs, not {N}"))
    }

    /// Records an op with any number of outputs.
    ///
    /// # Panics
    /// As [`Builder::op`].
    pub fn op_with_outputs<'g>(
        &'g self,
        op: impl Into<Op>,
        inputs: &[Value<'g>],
    ) -> Vec<Value<'g>> {
        let op = op.into();
        let types: Vec<Type> = inputs.iter().map(Value::ty).collect();
        let outputs = op.operation().outputs(&types);
        let mut graph = self.graph.borrow_mut();
        let outputs: Vec<ValueId> = outputs
            .into_iter()
            .map(|ty| graph.add_value(ty, Source::Computed))
            .collect();
        graph.nodes.push(Node {
            op,
            inputs: inputs.iter().map(|input| input.id).collect(),
            outputs: outputs.clone(),
            path: self.path.borrow().clone(),
            segment: self.segment.get(),
            is_backward: self.is_backward.get(),
        });
        outputs.into_iter().map(|id| self.value(id)).collect()
    }

    /// Records the ops of `build` in the scope `path`, below the current scope.
    pub fn named_scope<T>(&self, path: &str, build: impl FnOnce() -> T) -> T {
        let outer = self.path.borrow().clone();
        let inner = match outer.is_empty() {
            true => path.into(),
            false => format!("{outer}.{path}").into(),
        };
        self.path.replace(inner);
        let result = build();
        self.path.replace(outer);
        result
    }

    /// Records the ops of `build` as segment `index` of the forward pass, which may be recomputed as a whole.
    pub fn segment<T>(&self, index: usize, build: impl FnOnce() -> T) -> T {
        let outer = self.segment.replace(Some(index));
        let result = build();
        self.segment.set(outer);
        result
    }

    /// Records the ops of `build` as part of the backward pass.
    pub(crate) fn backward<T>(&self, build: impl FnOnce() -> T) -> T {
        let outer = self.is_backward.replace(true);
        let result = build();
        self.is_backward.set(outer);
        result
    }

    /// Returns the recorded graph.
    pub fn finish(self) -> Graph {
        self.graph.into_inner()
    }

    /// Returns a copy of the graph recorded so far.
    pub(crate) fn snapshot(&self) -> Graph {
        self.graph.borrow().clone()
    }
}

impl<'g> Value<'g> {
    /// Returns the id of the value in its graph.
    pub fn id(&self) -> ValueId {
        self.id
    }

    /// Returns the builder of its graph.
    pub fn builder(&self) -> &'g Builder {
        self.graph
    }

    /// Returns shape and element type.
    pub fn ty(&self) -> Type {
        self.graph.graph.borrow().ty(self.id)
    }

    /// Returns the sizes of the dimensions.
    pub fn shape(&self) -> Shape {
        self.ty().shape
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "value {} {:?}", self.id.0, self.ty())
    }
}

impl<'g> Add for Value<'g> {
    type Output = Value<'g>;

    fn add(self, other: Self) -> Self {
        ops::add(self, other)
    }
}

impl<'g> Sub for Value<'g> {
    type Output = Value<'g>;

    fn sub(self, other: Self) -> Self {
        self + other * -1.0
    }
}

impl<'g> Mul<f64> for Value<'g> {
    type Output = Value<'g>;

    fn mul(self, factor: f64) -> Self {
        ops::scale(self, factor)
    }
}
