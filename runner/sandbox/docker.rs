//! The Docker engine behind the seam.
