//! Correspondence between a tensor of this crate and tensors of a checkpoint, in both directions.

use super::super::experts::transposed;
use crate::tensors::HostTensor;

/// A tensor of this crate as a stack of tensors of a checkpoint, with an optional permutation of its rows.
/// A vector has rows of one element.
///
/// ```text
/// stack   = [theirs[0]; theirs[1]; …]
/// ours[i] = stack[order[i]]
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::interop) struct Mapping {
    /// Name in this crate.
    pub(in crate::interop) ours: String,
    /// The tensors of the checkpoint.
    pub(in crate::interop) theirs: Vec<Part>,
    order: Option<Vec<usize>>,
    /// Name of one tensor (experts, rows, columns) that some checkpoints contain in place of the stack.
    pub(super) fused: Option<String>,
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::interop) struct Part {
    /// Name in the checkpoint.
    pub(in crate::interop) name: String,
    /// Number of rows; `None` for a tensor that corresponds to the whole tensor of this crate.
    rows: Option<usize>,
    /// True if the checkpoint contains the transpose.
    is_transposed: bool,
}

impl Part {
    /// A tensor with this number of rows.
    pub(super) fn rows(name: String, rows: usize) -> Self {
        Self {
            name,
            rows: Some(rows),
            is_transposed: false,
        }
    }
}

impl Mapping {
    /// A tensor with another name.
    pub(in crate::interop) fn renamed(theirs: impl Into<String>, ours: impl Into<String>) -> Self {
        Self {
            ours: ours.into(),
            theirs: vec![Part {
                name: theirs.into(),
                rows: None,
                is_transposed: false,
            }],
            order: None,
            fused: None,
        }
    }

    /// A stack of tensors.
    pub(super) fn stack(theirs: Vec<Part>, ours: impl Into<String>) -> Self {
        Self {
            ours: ours.into(),
            theirs,
            order: None,
            fused: None,
        }
    }

    /// Row i of this crate's tensor is row `order[i]` of the stack; `order` is a permutation.
    pub(super) fn with_order(self, order: Vec<usize>) -> Self {
        let mut seen = vec![false; order.len()];
        for &row in &order {
            assert!(
                !std::mem::replace(&mut seen[row], true),
                "{} is not a permutation",
                self.ours
            );
        }
        Self {
            order: Some(order),
            ..self
        }
    }

    /// Some checkpoints contain one tensor (experts, rows, columns) of this name in place of the stack.
    pub(super) fn or_fused(self, name: String) -> Self {
        Self {
            fused: Some(name),
            ..self
        }
    }

    /// Builds this crate's tensor from [`Mapping::fused`].
    pub(super) fn assemble_fused(&self, mut tensor: HostTensor) -> Result<HostTensor, String> {
        let rows = self
            .theirs
            .iter()
            .map(|part| part.rows.unwrap_or(0))
            .sum::<usize>();
        match tensor.shape[..] {
            [experts, rows_each, columns] if experts.checked_mul(rows_each) == Some(rows) => {
                tensor.shape = vec![rows, columns];
                Ok(tensor)
            }
            _ => Err(format!(
                "tensor {} has shape {:?}, expected {rows} rows of all experts together",
                self.fused.as_deref().unwrap_or_default(),
                tensor.shape
            )),
        }
    }

    /// The checkpoint contains the transposes.
    pub(super) fn transposed(mut self) -> Self {
        self.theirs
            .iter_mut()
            .for_each(|part| part.is_transposed = true);
        self
    }

    /// Builds this crate's tensor from the checkpoint's, which `take` returns by name.
    pub(super) fn assemble(
        &self,
        mut take: impl FnMut(&str) -> Result<HostTensor, String>,
    ) -> Result<HostTensor, String> {
        let mut parts: Vec<HostTensor> = Vec::with_capacity(self.theirs.len());
        for part in &self.theirs {
            let tensor = take(&part.name)?;
            part.check(&tensor)?;
            let tensor = match part.is_transposed {
                true => transposed(tensor),
                false => tensor,
            };
            if let Some(first) = parts.first()
                && tensor.shape[1..] != first.shape[1..]
            {
                return Err(format!(
                    "tensor {} has shape {:?}, which does not match that of {}, {:?}",
                    part.name, tensor.shape, self.theirs[0].name, first.shape
                ));
            }
            parts.push(tensor);
        }
        let stack = stacked(parts);
        match &self.order {
            None => Ok(stack),
            Some(order) => self
                .check_order(order, &stack)
                .map(|()| reordered(&stack, order)),
        }
    }

    /// Returns names and shapes of the checkpoint's tensors, from the shape of this crate's.
    pub(in crate::interop) fn shapes(&self, ours: &[usize]) -> Vec<(String, Vec<usize>)> {
        let shape = |part: &Part| {
            let mut shape = ours.to_vec();
            shape[0] = part.rows.unwrap_or(ours[0]);
            if part.is_transposed {
                shape.reverse();
            }
            (part.name.clone(), shape)
        };
        self.theirs.iter().map(shape).collect()
    }

    fn check_order(&self, order: &[usize], stack: &HostTensor) -> Result<(), String> {
        match stack.shape[0] == order.len() {
            true => Ok(()),
            false => Err(format!(
                "tensor {} has shape {:?}, expected {} rows",
                self.theirs[0].name,
                stack.shape,
                order.len()
            )),
        }
    }

    /// Splits this crate's tensor into the checkpoint's, with their names: the inverse of [`Mapping::assemble`].
    pub(in crate::interop) fn split(&self, ours: HostTensor) -> Vec<(String, HostTensor)> {
        let stack = match &self.order {
            None => ours,
            Some(order) => reordered(&ours, &inverse(order)),
        };
        let width = row_width(&stack.shape);
        let mut start = 0;
        let parts = self.theirs.iter().map(|part| {
            let rows = part.rows.unwrap_or(stack.shape[0]);
            let data = stack.data[start * width..][..rows * width].to_vec();
            start += rows;
            let mut shape = stack.shape.clone();
            shape[0] = rows;
            let tensor = HostTensor { shape, data };
            let tensor = match part.is_transposed {
                true => transposed(tensor),
                false => tensor,
            };
            (part.name.clone(), tensor)
        });
        parts.collect()
    }
}

impl Part {
    fn check(&self, tensor: &HostTensor) -> Result<(), String> {
        let Self { name, rows, .. } = self;
        let shape = &tensor.shape;
        let problem = |expected: String| {
            Err(format!(
                "tensor {name} has shape {shape:?}, expected {expected}"
            ))
        };
        if shape.is_empty() {
            return problem("at least one dimension".into());
        }
        if self.is_transposed && shape.len() != 2 {
            return problem("a matrix".into());
        }
        let (found, kind) = match self.is_transposed {
            true => (shape[1], "columns"),
            false => (shape[0], "rows"),
        };
        match rows {
            Some(rows) if *rows != found => problem(format!("{rows} {kind}")),
            _ => Ok(()),
        }
    }
}

fn row_width(shape: &[usize]) -> usize {
    shape[1..].iter().product()
}

/// Stacks tensors with rows of equal shape.
fn stacked(mut parts: Vec<HostTensor>) -> HostTensor {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let mut shape = parts[0].shape.clone();
    shape[0] = parts.iter().map(|part| part.shape[0]).sum();
    let mut data = Vec::with_capacity(shape.iter().product());
    // Each part is freed as soon as it is copied.
    parts.into_iter().for_each(|part| data.extend(part.data));
    HostTensor { shape, data }
}

fn reordered(tensor: &HostTensor, order: &[usize]) -> HostTensor {
    let width = row_width(&tensor.shape);
    let mut data = Vec::with_capacity(tensor.data.len());
    for &row in order {
        data.extend_from_slice(&tensor.data[row * width..][..width]);
    }
    HostTensor {
        shape: tensor.shape.clone(),
        data,
    }
}

fn inverse(order: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; order.len()];
    for (ours, &stack) in order.iter().enumerate() {
        inverse[stack] = ours;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(shape: [usize; 2], data: &[f32]) -> HostTensor {
        HostTensor {
            shape: shape.to_vec(),
            data: data.to_vec(),
        }
    }

    #[test]
    fn split_is_the_inverse_of_assemble() {
        let parts = [
            ("a", matrix([2, 2], &[0., 1., 2., 3.])),
            ("b", matrix([1, 2], &[4., 5.])),
        ];
        let take = |name: &str| {
            Ok(parts
                .iter()
                .find(|(known, _)| *known == name)
                .unwrap()
                .1
                .clone())
        };
        let stack = Mapping::stack(
            vec![Part::rows("a".into(), 2), Part::rows("b".into(), 1)],
            "ours",
        );
        let ours = stack.assemble(take).unwrap();
        assert_eq!(ours, matrix([3, 2], &[0., 1., 2., 3., 4., 5.]));
        let ordered = stack.with_order(vec![2, 0, 1]);
        let ours = ordered.assemble(take).unwrap();
        assert_eq!(ours, matrix([3, 2], &[4., 5., 0., 1., 2., 3.]));
        let back = ordered.split(ours);
        assert_eq!(
            back,
            parts
                .clone()
                .map(|(name, tensor)| (name.to_owned(), tensor))
        );
    }

    #[test]
    fn transposes_are_undone() {
        let mapping = Mapping::renamed("a", "ours").transposed();
        let theirs = matrix([2, 3], &[0., 1., 2., 3., 4., 5.]);
        let ours = mapping.assemble(|_| Ok(theirs.clone())).unwrap();
        assert_eq!(ours, matrix([3, 2], &[0., 3., 1., 4., 2., 5.]));
        assert_eq!(mapping.split(ours), [("a".to_owned(), theirs)]);
    }

    #[test]
    fn shapes_are_checked() {
        let stack = Mapping::stack(
            vec![Part::rows("a".into(), 2), Part::rows("b".into(), 1)],
            "ours",
        );
        let error = |tensors: [HostTensor; 2]| {
            let mut tensors = tensors.into_iter();
            stack.assemble(|_| Ok(tensors.next().unwrap())).unwrap_err()
        };
        let [two_rows, one_row] = [matrix([2, 2], &[0.0; 4]), matrix([1, 2], &[0.0; 2])];
        assert!(
            error([one_row.clone(), one_row])
                .contains("tensor a has shape [1, 2], expected 2 rows")
        );
        let wide = matrix([1, 3], &[0.0; 3]);
        assert!(error([two_rows, wide]).contains("tensor b has shape [1, 3]"));
    }
}
