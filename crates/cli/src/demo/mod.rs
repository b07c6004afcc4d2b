//! placeholder until the story is written
