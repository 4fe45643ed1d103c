//! The header of a safetensors file. Weights are not read.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use serde::Deserialize;
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};

use super::Unusable;
use super::tensors::{Tensor, Tensors};

/// Longest header that is read. The format allows 100 MB, and one of 95 MB with a million empty tensors takes a
/// parser more than a second and a gibibyte; the headers of the largest published models have some 100 KB a shard.
const LONGEST_HEADER: u64 = 32 << 20;
/// Tensors of a file at most.
const MOST_TENSORS: usize = 65_536;

/// The tensors of a file of `length` bytes.
pub(super) fn read(mut file: impl Read, length: u64) -> Result<Tensors, Unusable> {
    if length < 8 {
        return Err(Unusable::damaged(format!("{length} bytes are no safetensors file"), AGAIN));
    }
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(unreadable)?;
    let size = u64::from_le_bytes(size);
    if size > LONGEST_HEADER {
        // Whatever is no safetensors file shows here: its first bytes make an absurd number.
        let begin = size.to_le_bytes();
        let problem = format!(
            "not a safetensors file, or one with a header of {size} bytes where {LONGEST_HEADER} at most are read: it \
             begins with `{}`",
            begin.escape_ascii()
        );
        return Err(Unusable::damaged(problem, "check that the download is whole and the right file"));
    }
    let data = size + 8;
    if data > length {
        return Err(truncated("the header", data, length));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header).map_err(unreadable)?;
    let header: Header = serde_json::from_slice(&header)
        .map_err(|error| Unusable::damaged(format!("the header cannot be read: {error}"), AGAIN))?;
    header.0.into_iter().map(|(name, entry)| entry.check(&name, data, length).map(|tensor| (name, tensor))).collect()
}

const AGAIN: &str = "download or copy the file again";

fn truncated(what: &str, end: u64, length: u64) -> Unusable {
    Unusable::damaged(format!("truncated: {what} ends at byte {end}, the file has {length}"), AGAIN)
}

fn unreadable(error: std::io::Error) -> Unusable {
    Unusable::damaged(format!("cannot be read: {error}"), AGAIN)
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Entry {
    /// `data` is where the tensors' bytes begin.
    fn check(self, name: &str, data: u64, length: u64) -> Result<Tensor, Unusable> {
        let Some((dtype, width)) = number_type(&self.dtype) else {
            let problem = format!("tensor `{name}` is {}, which the worker cannot read", self.dtype);
            return Err(Unusable::unsupported(problem, "save the model in F32, F16 or BF16"));
        };
        let [begin, end] = self.data_offsets;
        let bytes = self.shape.iter().try_fold(width, |product, size| product.checked_mul(*size));
        if bytes.is_none() || end.checked_sub(begin) != bytes {
            let problem = format!(
                "tensor `{name}` lies in bytes {begin} to {end}, which is not the size of {:?} in {}",
                self.shape, self.dtype
            );
            return Err(Unusable::damaged(problem, AGAIN));
        }
        let end = data.saturating_add(end);
        if end > length {
            return Err(truncated(&format!("tensor `{name}`"), end, length));
        }
        Ok(Tensor { dtype, shape: self.shape })
    }
}

/// Our name, and bytes a number.
fn number_type(name: &str) -> Option<(&'static str, u64)> {
    Some(match name {
        "F32" => ("f32", 4),
        "F16" => ("f16", 2),
        "BF16" => ("bf16", 2),
        _ => return None,
    })
}

/// The header's tensors by name, collected while it is read so that a flood of them is noticed early.
struct Header(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if tensors.len() == MOST_TENSORS {
                        return Err(A::Error::custom(format!("more than {MOST_TENSORS} tensors")));
                    }
                    let entry = map.next_value()?;
                    if tensors.insert(name.clone(), entry).is_some() {
                        return Err(A::Error::custom(format!("tensor `{name}` is there twice")));
                    }
                }
                Ok(Header(tensors))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A file with these tensors, all zeros.
    fn file(tensors: &Tensors) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for (name, tensor) in tensors {
            let begin = end;
            end += 4 * tensor.shape.iter().product::<u64>();
            header.insert(name.clone(), json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, end]}));
        }
        with_header(&serde_json::Value::Object(header).to_string(), end as usize)
    }

    fn with_header(header: &str, data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data, 0);
        file
    }

    fn refusal(file: &[u8]) -> String {
        read(file, file.len() as u64).unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_read_without_its_weights() {
        let tensors = Tensors::from([("w".into(), Tensor { dtype: "f32", shape: vec![2, 3] })]);
        let file = file(&tensors);
        let header = &file[..file.len() - 24];
        assert_eq!(read(header, file.len() as u64).unwrap(), tensors);
    }

    #[test]
    fn a_cut_is_told_with_both_sizes() {
        let header = r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
        let file = with_header(header, 15);
        let end = 8 + header.len() + 16;
        assert!(
            refusal(&file).starts_with(&format!("truncated: tensor `w` ends at byte {end}, the file has {}", end - 1))
        );
        assert!(refusal(&file[..20]).starts_with("truncated: the header ends at"));
        assert!(refusal(b"GG").contains("2 bytes are no safetensors file"));
    }

    #[test]
    fn what_is_something_else_is_shown() {
        assert!(refusal(b"PK\x03\x04 and so on").contains("it begins with `PK\\x03\\x04"));
    }

    #[test]
    fn lies_in_the_header_are_refused() {
        let size = r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}"#;
        assert!(refusal(&with_header(size, 8)).contains("not the size of [4] in F32"));
        let backwards = r#"{"w":{"dtype":"F32","shape":[],"data_offsets":[8,4]}}"#;
        assert!(refusal(&with_header(backwards, 8)).contains("bytes 8 to 4"));
        let huge = r#"{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#;
        assert!(refusal(&with_header(huge, 8)).contains("not the size of"));
        let quantized = r#"{"w":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}"#;
        assert!(refusal(&with_header(quantized, 4)).contains("F8_E4M3, which the worker cannot read"));
        assert!(refusal(&with_header("[]", 0)).contains("the header cannot be read"));
    }
}
