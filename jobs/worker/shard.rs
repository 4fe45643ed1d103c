//! The header of a safetensors file, which may be damaged or hostile.
//!
//! A file is the header's length (u64, little-endian), the header, and the tensors' bytes. The header is a JSON object
//! that gives each tensor its type, its shape and where its bytes lie after the header; `__metadata__` holds strings.
//! The bytes must be used from first to last without gap or overlap: what is hidden in a gap could be anything.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use crate::blocks::BlockKind;

/// A header that is longer is no header; the format's own limit is the same.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Far above what a file of any model has.
const MAX_TENSORS: usize = 1 << 18;
const MAX_DIMENSIONS: usize = 8;

/// Where a tensor lies in the file, and what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// One of the floats.
    pub kind: BlockKind,
    pub shape: Vec<usize>,
    pub bytes: Range<usize>,
}

/// Reads the header of a whole file.
pub fn places(file: &[u8]) -> Result<BTreeMap<String, Place>, String> {
    let length = file.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).ok_or("it is too short")?;
    let data_start = usize::try_from(length).ok().and_then(|length| length.checked_add(8));
    let Some(start) = data_start.filter(|start| length <= MAX_HEADER_BYTES && *start <= file.len()) else {
        return Err(format!("a header of {length} bytes in {} bytes", file.len()));
    };
    let Header(entries) = serde_json::from_slice(&file[8..start]).map_err(|error| format!("bad header: {error}"))?;
    let mut places = BTreeMap::new();
    for (name, entry) in entries {
        let place = place(entry, start, file.len()).map_err(|wrong| format!("tensor `{name}`: {wrong}"))?;
        places.insert(name, place);
    }
    check_order(&places, start, file.len())?;
    Ok(places)
}

/// Every byte after the header belongs to one tensor.
fn check_order(places: &BTreeMap<String, Place>, start: usize, end: usize) -> Result<(), String> {
    let mut in_order: Vec<_> = places.iter().collect();
    in_order.sort_by_key(|(_, place)| (place.bytes.start, place.bytes.end));
    let mut used = start;
    for (name, place) in in_order {
        if place.bytes.start != used {
            let how = if place.bytes.start < used { "overlaps the one before" } else { "follows a gap" };
            return Err(format!("tensor `{name}` {how}, at byte {}", place.bytes.start - start));
        }
        used = place.bytes.end;
    }
    if used == end { Ok(()) } else { Err(format!("{} bytes after the last tensor belong to none", end - used)) }
}

/// Checks an entry against the file that it is about.
fn place(entry: Entry, data_start: usize, file_size: usize) -> Result<Place, String> {
    let kind = match entry.dtype.as_str() {
        "F32" => BlockKind::F32,
        "F16" => BlockKind::F16,
        "BF16" => BlockKind::Bf16,
        other => return Err(format!("its type is {other}; F32, F16 and BF16 are known")),
    };
    if entry.shape.len() > MAX_DIMENSIONS {
        return Err(format!("it has {} dimensions; at most {MAX_DIMENSIONS} are expected", entry.shape.len()));
    }
    let elements = entry.shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    // Room for the values in f32 must be countable too.
    let elements = elements.filter(|count| count.checked_mul(size_of::<f32>()).is_some());
    let bytes = elements.and_then(|count| kind.row_bytes(count));
    let (from, to) = entry.data_offsets;
    match (bytes, to.checked_sub(from)) {
        (Some(bytes), Some(length)) if bytes == length && to <= file_size - data_start => {
            Ok(Place { kind, bytes: data_start + from..data_start + to, shape: entry.shape })
        }
        _ => Err(format!("bytes {from}..{to} do not hold {:?} values of {:?}", entry.shape, entry.dtype)),
    }
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The entries of a header, none of them twice: of two with one name, readers differ in which one they take.
struct Header(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if entries.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    let entry = map.next_value()?;
                    if entries.insert(name.clone(), entry).is_some() {
                        return Err(A::Error::custom(format!("tensor `{name}` is there twice")));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data, 1);
        file
    }

    fn entry(name: &str, dtype: &str, shape: &str, from: usize, to: usize) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    }

    fn read(entries: &[String], data: usize) -> Result<BTreeMap<String, Place>, String> {
        places(&file(&format!("{{{}}}", entries.join(",")), data))
    }

    #[test]
    fn tensors_in_any_order_are_found_and_metadata_is_passed_over() {
        let metadata = r#""__metadata__":{"format":"pt"}"#.to_owned();
        let entries = [entry("b", "F16", "[3]", 8, 14), metadata, entry("a", "F32", "[1,2]", 0, 8)];
        let places = read(&entries, 14).unwrap();
        assert_eq!((places["a"].kind, &places["a"].shape[..]), (BlockKind::F32, &[1, 2][..]));
        assert_eq!(places["b"].bytes.len(), 6);
        assert_eq!(read(&[], 0).unwrap().len(), 0);
    }

    #[test]
    fn what_a_header_may_not_say_is_told() {
        let a = entry("a", "F32", "[2]", 0, 8);
        let wrong = |entries: &[String], data| read(entries, data).unwrap_err();
        assert_eq!(
            wrong(&[a.clone(), entry("b", "F32", "[1]", 4, 8)], 8),
            "tensor `b` overlaps the one before, at byte 4"
        );
        assert_eq!(wrong(&[a.clone(), entry("b", "F32", "[1]", 12, 16)], 16), "tensor `b` follows a gap, at byte 12");
        assert_eq!(wrong(std::slice::from_ref(&a), 9), "1 bytes after the last tensor belong to none");
        assert!(wrong(&[a.clone(), a.clone()], 8).contains("tensor `a` is there twice"));
        assert!(wrong(&[entry("a", "F32", "[3]", 0, 8)], 8).contains("bytes 0..8 do not hold [3] values"));
        assert!(wrong(&[entry("a", "F32", "[2]", 8, 0)], 8).contains("bytes 8..0 do not hold"));
        assert!(wrong(&[entry("a", "I8", "[8]", 0, 8)], 8).contains("its type is I8; F32, F16 and BF16 are known"));
        let overflowing = entry("a", "F32", "[4294967296,4294967296]", 0, 0);
        assert!(wrong(&[overflowing], 0).contains("bytes 0..0 do not hold"));
        assert!(wrong(&[entry("a", "F32", "[1,1,1,1,1,1,1,1,2]", 0, 8)], 8).contains("9 dimensions"));
        assert!(places(&[255; 64]).unwrap_err().contains("a header of 18446744073709551615 bytes in 64"));
        let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert!(places(&file(&deep, 0)).unwrap_err().starts_with("bad header"));
    }

    #[test]
    fn a_file_that_was_changed_anywhere_is_read_or_refused_but_never_panics() {
        let entries = [entry("a", "F32", "[1,2]", 0, 8), entry("b", "BF16", "[3]", 8, 14)];
        let whole = file(&format!("{{{}}}", entries.join(",")), 14);
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut refused = 0;
        for _ in 0..20_000 {
            let mut file = whole.clone();
            let at = random.next_u32() as usize % (whole.len() - 14);
            match random.next_u32() % 3 {
                0 => file[at] = random.next_u32() as u8,
                1 => file[at] = b"0123456789[]{},:\"-"[random.next_u32() as usize % 18],
                _ => file.truncate(at),
            }
            match places(&file) {
                Ok(places) => assert!(places.values().all(|place| file.get(place.bytes.clone()).is_some())),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 10_000, "{refused} were refused");
    }
}
