//! The fields of a configuration, taken one by one: what is left over nobody has read.

use std::path::Path;

use serde_json::{Map, Value};

use super::ModelError;

/// Fields that change nothing about tokens, in any family.
const WITHOUT_EFFECT: &[&str] = &[
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "bos_token_id",
    "dtype",
    "initializer_range",
    "max_window_layers",
    "model_type",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// A JSON object of which fields are taken.
pub(super) struct Fields {
    fields: Map<String, Value>,
}

impl Fields {
    pub(super) fn parse(json: &str, path: &Path) -> Result<Self, ModelError> {
        match serde_json::from_str(json) {
            Ok(Value::Object(fields)) => Ok(Self { fields }),
            Ok(other) => Err(ModelError::format(path, format!("needs an object, got {other}"))),
            Err(error) => Err(ModelError::format(path, error)),
        }
    }

    /// A field that is there and not null.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.fields.remove(field).filter(|value| !value.is_null())
    }

    /// Gives a field another name.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<(), ModelError> {
        if let Some(value) = self.take(from) {
            self.take_fixed(to, value.clone())?;
            self.fields.insert(to.to_owned(), value);
        }
        Ok(())
    }

    fn required<T>(
        &mut self,
        field: &str,
        needed: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<T, ModelError> {
        let value = self.take(field).unwrap_or(Value::Null);
        read(&value).ok_or_else(|| {
            let got = if value.is_null() { "nothing".to_owned() } else { value.to_string() };
            ModelError::config(field, needed, got)
        })
    }

    /// A size: a positive number.
    pub(super) fn take_size(&mut self, field: &str) -> Result<u32, ModelError> {
        self.required(field, "a positive integer", size)
    }

    /// A size that may be absent.
    pub(super) fn take_size_or(&mut self, field: &str, absent: u32) -> Result<u32, ModelError> {
        match self.fields.get(field) {
            None | Some(Value::Null) => {
                self.fields.remove(field);
                Ok(absent)
            }
            Some(_) => self.take_size(field),
        }
    }

    pub(super) fn take_number(&mut self, field: &str) -> Result<f64, ModelError> {
        let positive = |value: &Value| value.as_f64().filter(|number| *number > 0.0);
        self.required(field, "a positive number", positive)
    }

    pub(super) fn take_text(&mut self, field: &str) -> Result<String, ModelError> {
        self.required(field, "a text", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn take_flag_or(&mut self, field: &str, absent: bool) -> Result<bool, ModelError> {
        match self.take(field) {
            None => Ok(absent),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(ModelError::config(field, "true or false", other)),
        }
    }

    /// Numbers, of which there may be none, one or a list.
    pub(super) fn take_tokens(&mut self, field: &str) -> Result<Vec<u32>, ModelError> {
        let number = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let value = self.take(field).unwrap_or(Value::Array(Vec::new()));
        let tokens = match &value {
            Value::Array(list) => list.iter().map(number).collect(),
            one => number(one).map(|one| vec![one]),
        };
        tokens.ok_or_else(|| ModelError::config(field, "numbers from 0", &value))
    }

    /// A field that may only be absent, or say what is the case anyway.
    pub(super) fn take_fixed(
        &mut self,
        field: &str,
        fixed: impl Into<Value>,
    ) -> Result<(), ModelError> {
        let fixed = fixed.into();
        match self.take(field) {
            Some(other) if other != fixed => Err(ModelError::config(field, fixed, other)),
            _ => Ok(()),
        }
    }

    /// The fields of an object that may be absent.
    pub(super) fn take_object(&mut self, field: &str) -> Result<Option<Self>, ModelError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Self { fields })),
            Some(other) => Err(ModelError::config(field, "an object", other)),
        }
    }

    /// Refuses what nobody has taken; `inside` stands before the names of such fields.
    pub(super) fn finish(self, inside: &str) -> Result<(), ModelError> {
        let unknown = |field: &&String| !WITHOUT_EFFECT.contains(&field.as_str());
        match self.fields.keys().find(unknown) {
            None => Ok(()),
            Some(field) => {
                let got = &self.fields[field];
                Err(ModelError::config(
                    &format!("{inside}{field}"),
                    "to be absent: nothing here knows what it means",
                    got,
                ))
            }
        }
    }
}

fn size(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|size| u32::try_from(size).ok()).filter(|&size| size > 0)
}
