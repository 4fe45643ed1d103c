//! How many GPUs a job has that does not say.

use serde::{Deserialize, Serialize};

/// GPUs of a job that does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum DefaultGpus {
    /// One, where the host has any, the worker image computes on them, and the kind of job does; otherwise none.
    #[default]
    Auto,
    Count(u32),
}

/// The same as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Count(u32),
    Word(String),
}

impl TryFrom<Written> for DefaultGpus {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        match written {
            Written::Count(count) if count <= 16 => Ok(Self::Count(count)),
            Written::Word(word) if word == "auto" => Ok(Self::Auto),
            other => Err(format!("{other:?} is neither auto nor a number from 0 to 16")),
        }
    }
}

impl From<DefaultGpus> for Written {
    fn from(gpus: DefaultGpus) -> Self {
        match gpus {
            DefaultGpus::Auto => Self::Word("auto".into()),
            DefaultGpus::Count(count) => Self::Count(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_and_small_numbers_are_read_as_they_are_written() {
        for text in ["\"auto\"", "0", "16"] {
            let read: DefaultGpus = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        for text in ["\"all\"", "17", "-1", "1.5"] {
            assert!(serde_json::from_str::<DefaultGpus>(text).is_err(), "{text}");
        }
    }
}
