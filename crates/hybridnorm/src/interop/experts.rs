//! Conversion of the experts of external checkpoints to stacked matrices.

use crate::tensors::HostTensor;

/// Dimensions of an expert.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpertDims {
    pub(super) d_model: usize,
    pub(super) d_expert: usize,
}

/// Splits a stack of matrices (E·rows, columns) into one for each expert.
pub(super) fn split(stack: HostTensor, experts: usize) -> Result<Vec<HostTensor>, String> {
    let [rows, columns] = match stack.shape[..] {
        [rows, columns] if rows.is_multiple_of(experts) && rows * columns > 0 => {
            [rows / experts, columns]
        }
        _ => {
            return Err(format!(
                "has shape {:?}, expected {experts} stacked matrices",
                stack.shape
            ));
        }
    };
    let matrices = stack.data.chunks(rows * columns).map(|data| HostTensor {
        shape: vec![rows, columns],
        data: data.to_vec(),
    });
    Ok(matrices.collect())
}

/// Transposes a matrix.
pub(super) fn transposed(matrix: HostTensor) -> HostTensor {
    let [rows, columns] = matrix.shape[..] else {
        return matrix;
    };
    let data = (0..columns)
        .flat_map(|column| (0..rows).map(move |row| row * columns + column))
        .map(|at| matrix.data[at])
        .collect();
    HostTensor {
        shape: vec![columns, rows],
        data,
    }
}

/// Builds `PATH.up`, a gate (f, d) and an up projection (f, d) of every expert in turn, and `PATH.down`, the
/// down projections (d, f), from the experts' gate, up and down projections.
pub(super) fn stack_projections(
    path: &str,
    dims: ExpertDims,
    [gate, up, down]: [Vec<HostTensor>; 3],
) -> Result<[(String, HostTensor); 2], String> {
    let ExpertDims { d_model, d_expert } = dims;
    let check = |kind: &str, matrices: &[HostTensor], shape: [usize; 2]| match matrices
        .iter()
        .position(|matrix| matrix.shape != shape)
    {
        Some(expert) => Err(format!(
            "the {kind} projection of expert {expert} of {path} has shape {:?}, expected {shape:?}",
            matrices[expert].shape
        )),
        None => Ok(()),
    };
    check("gate", &gate, [d_expert, d_model])?;
    check("up", &up, [d_expert, d_model])?;
    check("down", &down, [d_model, d_expert])?;
    let experts = down.len();
    let pairs = gate.iter().zip(&up);
    let pairs = pairs.flat_map(|(gate, up)| [&gate.data[..], &up.data[..]]);
    let stack = |rows: usize, columns: usize, data: Vec<f32>| HostTensor {
        shape: vec![experts * rows, columns],
        data,
    };
    let up = stack(2 * d_expert, d_model, pairs.collect::<Vec<_>>().concat());
    let down: Vec<_> = down.iter().map(|matrix| &matrix.data[..]).collect();
    let down = stack(d_model, d_expert, down.concat());
    Ok([(format!("{path}.up"), up), (format!("{path}.down"), down)])
}
