//! What a GGUF file says about itself: entries of a key and a value, kept whole and in order, so that a copy of a file
//! loses nothing.

use drydock_spec::FailureKind::BadModel;

use crate::ending::{OrFail, Result};

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    /// Values of one type, whose number is kept for the case that there are none.
    List(u32, Vec<Value>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// The number of a list's type.
    pub(super) const LIST: u32 = 9;

    /// The number that stands for the value's type in a file.
    pub fn type_id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::List(..) => Self::LIST,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A list of texts.
    pub fn texts(items: impl IntoIterator<Item = String>) -> Self {
        Self::List(8, items.into_iter().map(Self::Text).collect())
    }

    /// A list of whole numbers.
    pub fn i32s(items: impl IntoIterator<Item = i32>) -> Self {
        Self::List(5, items.into_iter().map(Self::I32).collect())
    }

    /// A list of numbers.
    pub fn f32s(items: impl IntoIterator<Item = f32>) -> Self {
        Self::List(6, items.into_iter().map(Self::F32).collect())
    }

    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number that is not negative, of any width.
    pub fn as_whole(&self) -> Option<u64> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::U64(v) => Some(v),
            Self::I8(v) => v.try_into().ok(),
            Self::I16(v) => v.try_into().ok(),
            Self::I32(v) => v.try_into().ok(),
            Self::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    pub fn as_number(&self) -> Option<f64> {
        match *self {
            Self::F32(v) => Some(v.into()),
            Self::F64(v) => Some(v),
            _ => self.as_whole().map(|v| v as f64),
        }
    }
}

/// All entries of a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
}

impl Metadata {
    pub fn entries(&self) -> &[(String, Value)] {
        &self.entries
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Puts a value in the place of the one that the key has, or at the end.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.entries.iter_mut().find(|(name, _)| name == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key.to_owned(), value)),
        }
    }

    /// Adds an entry whose key is known to be new.
    pub(super) fn push(&mut self, key: String, value: Value) {
        self.entries.push((key, value));
    }

    pub fn remove(&mut self, key: &str) {
        self.entries.retain(|(name, _)| name != key);
    }

    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_text()
    }

    pub fn count(&self, key: &str) -> Option<usize> {
        self.get(key)?.as_whole()?.try_into().ok()
    }

    /// A count without which nothing can be done with the file.
    pub fn required(&self, key: &str) -> Result<usize> {
        self.count(key).ok_or("missing, or not a whole number").or_fail(BadModel, format_args!("GGUF metadata `{key}`"))
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_number()
    }

    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// A list whose items are all of the kind that `item` takes.
    pub fn list<'a, T>(&'a self, key: &str, item: impl Fn(&'a Value) -> Option<T>) -> Result<Vec<T>> {
        let items = match self.get(key) {
            Some(Value::List(_, items)) => items.iter().map(item).collect(),
            _ => None,
        };
        items
            .ok_or("missing, or not the list that is expected")
            .or_fail(BadModel, format_args!("GGUF metadata `{key}`"))
    }
}
