//! placeholder
use serde_json::Value;
pub(crate) fn parse(_text: &str, _variables: &str) -> Result<Value, String> { Err("not yet".into()) }
