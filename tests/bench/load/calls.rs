use crate::row::{Finding, Length};

pub(crate) async fn measure(_length: Length) -> Vec<Finding> {
    Vec::new()
}
