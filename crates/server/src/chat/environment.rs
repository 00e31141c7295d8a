//! Jinja as `transformers` configures it for chat templates.

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind};

use super::{generation, python};

/// Instructions that a template may execute, and units of 64 bytes that it may create, so that it always ends.
const FUEL: u64 = 2_000_000;

/// Compiles a template under a name.
///
/// # Errors
/// If it is not a valid template.
pub(super) fn environment(
    name: &'static str,
    template: &str,
) -> Result<Environment<'static>, Error> {
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    let mut environment = Environment::new();
    environment.set_syntax(syntax?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", python::to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", python::strftime_now);
    environment.add_template_owned(name, generation::replaced(template))?;
    Ok(environment)
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}
