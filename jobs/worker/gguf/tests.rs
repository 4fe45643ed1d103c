//! What is written is read again; what is damaged is refused.

use drydock_spec::{Failure, FailureKind};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::read::Contents;
use super::*;
use crate::blocks::BlockKind;
use crate::ending::Ending;

fn metadata() -> Metadata {
    let mut metadata = Metadata::default();
    let nested = Value::List(Value::LIST, vec![Value::i32s([1, -2]), Value::i32s([])]);
    let values = [
        ("general.architecture", Value::text("llama")),
        ("a", Value::U8(1)),
        ("b", Value::I8(-1)),
        ("c", Value::U16(2)),
        ("d", Value::I16(-2)),
        ("e", Value::U32(3)),
        ("f", Value::I32(-3)),
        ("g", Value::F32(0.5)),
        ("h", Value::Bool(true)),
        ("i", Value::texts(["ä".into(), String::new()])),
        ("j", nested),
        ("k", Value::U64(u64::MAX)),
        ("l", Value::I64(i64::MIN)),
        ("m", Value::F64(1e300)),
    ];
    values.into_iter().for_each(|(key, value)| metadata.set(key, value));
    metadata
}

fn planned() -> Vec<Planned> {
    let planned = |name: &str, shape: &[usize], kind| Planned { name: name.into(), shape: shape.to_vec(), kind };
    vec![
        planned("z.weight", &[3, 32], BlockKind::Q4_0),
        planned("a.weight", &[5], BlockKind::F32),
        planned("m.weight", &[2, 256], BlockKind::Q6K),
    ]
}

/// A file with those tensors, whose bytes are all their number.
fn written(metadata: &Metadata) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut writer = GgufWriter::create(&path, metadata, &planned()).unwrap();
    for (index, tensor) in planned().iter().enumerate() {
        let bytes = vec![index as u8 + 1; tensor.bytes()];
        let (first, second) = bytes.split_at(bytes.len() / 2);
        writer.append(first).unwrap();
        writer.append(second).unwrap();
    }
    assert!(!path.exists(), "the file has a partial name until it is whole");
    writer.finish().unwrap();
    std::fs::read(path).unwrap()
}

fn refused(file: &[u8]) -> Failure {
    match Contents::parse(file) {
        Err(Ending::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_is_read_again_whole_and_in_order() {
    for alignment in [None, Some(8), Some(4096)] {
        let mut metadata = metadata();
        if let Some(alignment) = alignment {
            metadata.set("general.alignment", Value::U32(alignment));
        }
        let file = written(&metadata);
        let contents = Contents::parse(&file).unwrap();
        assert_eq!(contents.metadata, metadata);
        for (index, planned) in planned().iter().enumerate() {
            let place = &contents.tensors[&planned.name];
            assert_eq!((place.index, place.kind, &place.shape), (index, planned.kind, &planned.shape));
            assert!(file[place.bytes.clone()].iter().all(|byte| *byte == index as u8 + 1));
            assert!(place.bytes.start.is_multiple_of(alignment.unwrap_or(32) as usize));
        }
    }
}

#[test]
fn a_file_that_is_given_up_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let writer = GgufWriter::create(&folder.path().join("model.gguf"), &metadata(), &planned()).unwrap();
    drop(writer);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_was_cut_off_anywhere_is_refused() {
    let file = written(&metadata());
    let last = Contents::parse(&file).unwrap().tensors["m.weight"].bytes.end;
    for length in 0..last {
        assert_eq!(refused(&file[..length]).kind, FailureKind::BadModel, "{length} bytes");
    }
}

#[test]
fn claims_that_cannot_be_true_are_named() {
    let file = written(&metadata());
    let changed = |at: usize, bytes: &[u8]| {
        let mut file = file.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        refused(&file).message
    };
    let huge = u64::MAX.to_le_bytes();
    assert_eq!(changed(0, b"GGML"), "the file does not begin with `GGUF`");
    assert!(changed(4, &[1]).starts_with("the GGUF file is of version 1; known are 2 and 3"));
    assert!(changed(8, &huge).contains("claims 18446744073709551615 tensors; at most 65536"));
    assert!(changed(16, &huge).contains("claims 18446744073709551615 metadata entries"));
    assert!(changed(24, &huge).contains("a key of 18446744073709551615 bytes"));
    let find = |text: &str| file.windows(text.len()).position(|part| part == text.as_bytes()).unwrap() + text.len();
    // A tensor's entry: the name, how many dimensions, those, the kind, the offset.
    let a = find("a.weight");
    assert!(changed(a, &[9]).contains("`a.weight` has 9 dimensions"));
    assert!(changed(a + 4, &huge).contains("`a.weight` of [18446744073709551615] cannot be held in F32"));
    assert!(changed(a + 4, &[0]).contains("`a.weight` has a dimension of 0"));
    assert!(changed(a + 12, &[4]).contains("`a.weight` is held in ggml's type 4"));
    assert!(changed(a + 16, &huge).contains("reach beyond the end of the file"));
    assert!(changed(a + 16, &[33]).contains("`a.weight` lies at 33, no multiple of 32"));
    assert_eq!(changed(a + 16, &[0; 8]), "tensors `a.weight` and `z.weight` overlap");
    assert_eq!(changed(a - 8, b"z"), "tensor `z.weight` is in the GGUF file twice");
    assert_eq!(changed(find("general.architecture") + 4 + 8 + 5 + 8, b"b"), "GGUF metadata `b` is there twice");
}

#[test]
fn a_list_cannot_make_the_reader_take_memory_or_dive_deep() {
    let mut deep = Value::U8(1);
    for _ in 0..6 {
        deep = Value::List(deep.type_id(), vec![deep]);
    }
    let mut metadata = Metadata::default();
    metadata.set("deep", deep);
    assert_eq!(refused(&written(&metadata)).message, "GGUF metadata `deep` has lists in lists, too deep");
    let mut metadata = Metadata::default();
    metadata.set("long", Value::List(0, vec![Value::U8(0); (1 << 22) + 1]));
    assert!(refused(&written(&metadata)).message.contains("`long` is a list of 4194305 items, too many"));
}

#[test]
fn a_file_that_was_changed_anywhere_is_read_or_refused_but_never_panics() {
    let whole = written(&metadata());
    let header = Contents::parse(&whole).unwrap().tensors["z.weight"].bytes.start;
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut file = whole.clone();
        for _ in 0..1 + random.next_u32() % 3 {
            let at = random.next_u32() as usize % header;
            match random.next_u32() % 4 {
                0 => file[at] = random.next_u32() as u8,
                1 => file[at] ^= 1 << (random.next_u32() % 8),
                2 => file[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff),
                _ => file.truncate(at.max(1)),
            }
            if file.len() < header {
                break;
            }
        }
        match Contents::parse(&file) {
            Ok(contents) => {
                for place in contents.tensors.values() {
                    let mut values = vec![0.0; place.shape.iter().product()];
                    place.kind.decode(&file[place.bytes.clone()], &mut values);
                }
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 5_000, "{refused} were refused");
}
