//! Which requests the gateway tells the log of. Used by `cli`, which reads it, and `gateway`, which obeys it.

/// Which requests have a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    Off,
    /// Each.
    On,
    /// Each that did not go well, and one in a hundred of the others.
    Sampled,
}
