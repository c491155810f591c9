//! Expressions of numbers, `+ - *` and parentheses.

/// The value of an expression, wrapping at 64 bits; 0 when it is malformed.
pub(crate) fn evaluate(text: &str) -> i64 {
    let mut rest = text.as_bytes();
    match sum(&mut rest) {
        Some(value) if rest.is_empty() => value,
        _ => 0,
    }
}

fn sum(rest: &mut &[u8]) -> Option<i64> {
    let mut total = product(rest)?;
    while let Some(sign @ (b'+' | b'-')) = rest.first().copied() {
        *rest = &rest[1..];
        let right = product(rest)?;
        total = match sign {
            b'+' => total.wrapping_add(right),
            _ => total.wrapping_sub(right),
        };
    }
    Some(total)
}

fn product(rest: &mut &[u8]) -> Option<i64> {
    let mut total = operand(rest)?;
    while rest.first() == Some(&b'*') {
        *rest = &rest[1..];
        total = total.wrapping_mul(operand(rest)?);
    }
    Some(total)
}

fn operand(rest: &mut &[u8]) -> Option<i64> {
    if rest.first() == Some(&b'(') {
        *rest = &rest[1..];
        // BUG, stack overflow: the depth is not limited.
        let value = sum(rest)?;
        *rest = rest.strip_prefix(b")")?;
        return Some(value);
    }
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, tail) = rest.split_at(digits);
    *rest = tail;
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_come_before_sums() {
        assert_eq!(evaluate("1+2*(3-4*2)*5-1"), -50);
        assert_eq!(evaluate("10-2-3"), 5);
    }

    #[test]
    fn malformed_expressions_are_zero() {
        for text in ["", "(1", "1+", "2)"] {
            assert_eq!(evaluate(text), 0, "{text}");
        }
    }
}
