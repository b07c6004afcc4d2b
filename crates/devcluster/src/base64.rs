//! Base64 with padding, for payloads: too little to need a crate.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut have) = (0u32, 0u32);
    for b in text.bytes().filter(|b| *b != b'=' && !b.is_ascii_whitespace()) {
        let value = ALPHABET.iter().position(|a| *a == b)?;
        bits = (bits << 6) | u32::try_from(value).ok()?;
        have += 6;
        if have >= 8 {
            have -= 8;
            out.push(u8::try_from((bits >> have) & 0xff).ok()?);
        }
    }
    Some(out)
}

/// Where a text stops being base64.
pub(crate) fn bad(text: &str) -> Option<usize> {
    let kept = text.trim_end_matches('=');
    let wrong = kept.bytes().position(|b| !ALPHABET.contains(&b));
    wrong.or_else(|| (!text.len().is_multiple_of(4) || text.len() - kept.len() > 2).then_some(text.len() / 4 * 4))
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().enumerate().fold(0u32, |n, (i, b)| n | (u32::from(*b) << (16 - 8 * i)));
        for i in 0..4 {
            if i <= chunk.len() {
                out.push(char::from(ALPHABET[((n >> (18 - 6 * i)) & 63) as usize]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn round_trip() {
        for text in ["", "a", "ab", "abc", "hello world"] {
            assert_eq!(super::decode(&super::encode(text.as_bytes())).as_deref(), Some(text.as_bytes()));
        }
        assert_eq!(super::encode(b"ab"), "YWI=");
    }
}
