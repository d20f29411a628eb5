//! Why things are as they are. One page for each decision that is worth remembering.
#![doc = include_str!("0001-one-lane-of-intent.md")]
#![doc = include_str!("0002-serving-threads.md")]
#![doc = include_str!("0003-home-is-a-fleet-of-one.md")]
#![doc = include_str!("0004-the-engine-in-the-tests.md")]
#![doc = include_str!("0005-what-a-restart-keeps.md")]
#![doc = include_str!("0006-ending-what-runs.md")]
#![doc = include_str!("0007-who-speaks-for-a-node.md")]
