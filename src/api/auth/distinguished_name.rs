//! Prints a certificate's subject exactly as `openssl x509 -noout -subject -nameopt RFC2253` does,
//! because operators copy it from there.
//!
//! Two subjects have the same text only if their values are the same text in different encodings.
//! Callers are not known here.

use x509_parser::asn1_rs::{Any, Class, Tag, ToDer as _};
use x509_parser::oid_registry::Oid;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// Returns the text of `name`, the last part first. `None` if it breaks the rules of DER, because
/// two names could then have the same text.
pub(crate) fn to_text(name: &X509Name<'_>) -> Option<String> {
    let mut parts = Vec::new();
    for part in name.iter() {
        let mut attributes = part.iter().map(attribute).collect::<Option<Vec<_>>>()?;
        // openssl reverses the whole name, and also the attributes within one part.
        attributes.reverse();
        parts.push(attributes.join("+"));
    }
    parts.reverse();
    Some(parts.join(","))
}

/// Returns whether all characters are printable ASCII, as in every text of [`to_text`].
pub(crate) fn is_printable_ascii(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let value = attribute.attr_value();
    let oid = oid_text(attribute.attr_type())?;
    let name = NAMES.iter().find(|(known, _)| *known == oid);
    // openssl prints a value as text only if it knows the attribute's name.
    Some(match (name, value_text(value)) {
        (Some((_, name)), Some(text)) => format!("{name}={}", escaped(&text)),
        (Some((_, name)), None) => format!("{name}={}", hex_dump(value)?),
        (None, _) => format!("{oid}={}", hex_dump(value)?),
    })
}

/// Returns an attribute's object identifier as numbers with dots.
fn oid_text(oid: &Oid<'_>) -> Option<String> {
    let mut arcs: Vec<u128> = Vec::new();
    for bytes in oid.as_bytes().split_inclusive(|byte| byte & 0x80 == 0) {
        let arc = bytes.iter().try_fold(0_u128, |arc, byte| {
            Some(arc.checked_mul(0x80)? | u128::from(byte & 0x7f))
        })?;
        // A leading zero would be a second encoding of the same number.
        if bytes.first() == Some(&0x80) || bytes.last()? & 0x80 != 0 {
            return None;
        }
        arcs.push(arc);
    }
    let (first, rest) = arcs.split_first()?;
    // The first two arcs share a number.
    let root = (first / 40).min(2);
    let mut text = format!("{root}.{}", first - root * 40);
    for arc in rest {
        text.push_str(&format!(".{arc}"));
    }
    Some(text)
}

/// Returns the value's text, or `None` if it is not text.
fn value_text(value: &Any<'_>) -> Option<String> {
    if value.class() != Class::Universal || value.header.is_constructed() {
        return None;
    }
    let tag = value.tag();
    if tag == Tag::Utf8String {
        return Some(std::str::from_utf8(value.data).ok()?.to_owned());
    }
    // openssl reads these as Latin-1, whatever their definitions allow.
    let latin_1 = [
        Tag::NumericString,
        Tag::PrintableString,
        Tag::T61String,
        Tag::Ia5String,
    ];
    if latin_1.contains(&tag) {
        return Some(value.data.iter().copied().map(char::from).collect());
    }
    if tag == Tag::BmpString {
        let (chars, rest) = value.data.as_chunks::<2>();
        let chars = chars
            .iter()
            .map(|bytes| char::from_u32(u16::from_be_bytes(*bytes).into()));
        return rest.is_empty().then(|| chars.collect()).flatten();
    }
    if tag == Tag::UniversalString {
        let (chars, rest) = value.data.as_chunks::<4>();
        let chars = chars
            .iter()
            .map(|bytes| char::from_u32(u32::from_be_bytes(*bytes)));
        return rest.is_empty().then(|| chars.collect()).flatten();
    }
    None
}

/// Escapes special and non-ASCII bytes as openssl does.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        let is_special = match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => true,
            b' ' => at == 0 || at == last,
            // A single `#` is not escaped, as in openssl: it cannot be a hex dump.
            b'#' => at == 0 && at != last,
            _ => false,
        };
        if is_special {
            escaped.push('\\');
        }
        match byte {
            b' '..=b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("\\{byte:02X}")),
        }
    }
    escaped
}

/// Returns the DER of a value that is not text, in hex. No escaped text looks like that.
fn hex_dump(value: &Any<'_>) -> Option<String> {
    let der = value.to_der_vec().ok()?;
    let hex: String = der.iter().map(|byte| format!("{byte:02X}")).collect();
    Some(format!("#{hex}"))
}

/// Attributes that are printed by name: those of X.520, and others that occur in subjects. openssl
/// names more attributes, which no subject should need; here they are printed as numbers.
const NAMES: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.14", "searchGuide"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.16", "postalAddress"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.18", "postOfficeBox"),
    ("2.5.4.19", "physicalDeliveryOfficeName"),
    ("2.5.4.20", "telephoneNumber"),
    ("2.5.4.21", "telexNumber"),
    ("2.5.4.22", "teletexTerminalIdentifier"),
    ("2.5.4.23", "facsimileTelephoneNumber"),
    ("2.5.4.24", "x121Address"),
    ("2.5.4.25", "internationaliSDNNumber"),
    ("2.5.4.26", "registeredAddress"),
    ("2.5.4.27", "destinationIndicator"),
    ("2.5.4.28", "preferredDeliveryMethod"),
    ("2.5.4.29", "presentationAddress"),
    ("2.5.4.30", "supportedApplicationContext"),
    ("2.5.4.31", "member"),
    ("2.5.4.32", "owner"),
    ("2.5.4.33", "roleOccupant"),
    ("2.5.4.34", "seeAlso"),
    ("2.5.4.35", "userPassword"),
    ("2.5.4.36", "userCertificate"),
    ("2.5.4.37", "cACertificate"),
    ("2.5.4.38", "authorityRevocationList"),
    ("2.5.4.39", "certificateRevocationList"),
    ("2.5.4.40", "crossCertificatePair"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.45", "x500UniqueIdentifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.47", "enhancedSearchGuide"),
    ("2.5.4.48", "protocolInformation"),
    ("2.5.4.49", "distinguishedName"),
    ("2.5.4.50", "uniqueMember"),
    ("2.5.4.51", "houseIdentifier"),
    ("2.5.4.52", "supportedAlgorithms"),
    ("2.5.4.53", "deltaRevocationList"),
    ("2.5.4.54", "dmdName"),
    ("2.5.4.65", "pseudonym"),
    ("2.5.4.72", "role"),
    ("2.5.4.97", "organizationIdentifier"),
    ("2.5.4.98", "c3"),
    ("2.5.4.99", "n3"),
    ("2.5.4.100", "dnsName"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
    ("1.2.840.113549.1.9.2", "unstructuredName"),
    ("1.2.840.113549.1.9.8", "unstructuredAddress"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.3", "mail"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.44", "uid"),
    ("1.3.6.1.4.1.311.60.2.1.1", "jurisdictionL"),
    ("1.3.6.1.4.1.311.60.2.1.2", "jurisdictionST"),
    ("1.3.6.1.4.1.311.60.2.1.3", "jurisdictionC"),
    ("1.2.643.3.131.1.1", "INN"),
    ("1.2.643.100.1", "OGRN"),
    ("1.2.643.100.3", "SNILS"),
    ("1.2.643.100.5", "OGRNIP"),
];

#[cfg(test)]
mod tests {
    use x509_parser::prelude::FromDer as _;

    use super::*;

    const NUMERIC: u8 = 18;
    const PRINTABLE: u8 = 19;
    const T61: u8 = 20;
    const IA5: u8 = 22;
    const UNIVERSAL: u8 = 28;
    const BMP: u8 = 30;
    const UTF8: u8 = 12;
    const BITS: u8 = 3;
    const SEQUENCE: u8 = 0x30;

    const CN: &[u8] = &[0x55, 4, 3];
    const O: &[u8] = &[0x55, 4, 10];
    const SERIAL_NUMBER: &[u8] = &[0x55, 4, 5];
    const EMAIL: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x01";

    /// Encodes DER with a length of one byte.
    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        assert!(length < 0x80);
        [&[tag, length], content].concat()
    }

    type Attribute<'a> = (&'a [u8], u8, &'a [u8]);

    /// Returns the text of the name with these parts.
    fn text_of(parts: &[&[Attribute<'_>]]) -> Option<String> {
        let parts = parts.iter().map(|part| {
            let attributes = part.iter().map(|(kind, tag, value)| {
                der(SEQUENCE, &[der(6, kind), der(*tag, value)].concat())
            });
            der(0x31, &attributes.collect::<Vec<_>>().concat())
        });
        let name = der(SEQUENCE, &parts.collect::<Vec<_>>().concat());
        let (_, name) = X509Name::from_der(&name).unwrap();
        to_text(&name)
    }

    /// `expected` is what OpenSSL 3.0.19 printed for a certificate with this subject.
    #[track_caller]
    fn check(parts: &[&[Attribute<'_>]], expected: &str) {
        assert_eq!(text_of(parts).as_deref(), Some(expected));
    }

    #[track_caller]
    fn check_cn(tag: u8, value: &[u8], expected: &str) {
        check(&[&[(CN, tag, value)]], &format!("CN={expected}"));
    }

    #[test]
    fn subject_is_printed_as_by_openssl() {
        check(&[], "");
        check(
            &[
                &[(O, UTF8, "Müller".as_bytes())],
                &[(SERIAL_NUMBER, PRINTABLE, b"7")],
                &[(CN, UTF8, b"desk")],
                &[(EMAIL, IA5, b"a@b.c")],
            ],
            r"emailAddress=a@b.c,CN=desk,serialNumber=7,O=M\C3\BCller",
        );
        check(
            &[
                &[(&[0x55, 4, 6], PRINTABLE, b"NL")],
                &[
                    (CN, UTF8, b"a"),
                    (SERIAL_NUMBER, PRINTABLE, b"7"),
                    (O, UTF8, b"o"),
                ],
            ],
            "O=o+serialNumber=7+CN=a,C=NL",
        );
    }

    #[test]
    fn characters_are_escaped_as_by_openssl() {
        for (value, expected) in [
            ("", ""),
            ("#", "#"),
            ("##", r"\##"),
            (" ", r"\ "),
            ("  ", r"\ \ "),
            (" a b ", r"\ a b\ "),
            ("a\t ", r"a\09\ "),
            ("\0\n\u{1f}\u{7f}", r"\00\0A\1F\7F"),
            (
                "a,b+c\"d\\e<f>g;h=i/j*k(l)",
                r#"a\,b\+c\"d\\e\<f\>g\;h=i/j*k(l)"#,
            ),
        ] {
            check_cn(UTF8, value.as_bytes(), expected);
        }
    }

    #[test]
    fn every_text_encoding_is_printed_as_utf_8() {
        check_cn(NUMERIC, b"123 4", "123 4");
        check_cn(T61, b"M\xfcller", r"M\C3\BCller");
        check_cn(IA5, b"\xfca", r"\C3\BCa");
        check_cn(BMP, b"\0M\0\xfc\x20\xac\0,", r"M\C3\BC\E2\82\AC\,");
        check_cn(
            UNIVERSAL,
            b"\0\0\0\xfc\0\x01\xf6\x00",
            r"\C3\BC\F0\9F\98\80",
        );
    }

    #[test]
    fn other_values_and_unknown_attributes_are_dumped() {
        // Values that are not text, and attributes without a name, are printed as their DER.
        let unique = &[0x55, 4, 45];
        check(
            &[&[(unique, BITS, b"\0\xaf\x01")]],
            "x500UniqueIdentifier=#030300AF01",
        );
        let address = der(UTF8, b"street");
        check(
            &[&[(&[0x55, 4, 16], SEQUENCE, &address)]],
            "postalAddress=#30080C06737472656574",
        );
        for (kind, number) in [
            (&[0x2a, 3, 4][..], "1.2.3.4"),
            (&[0x88, 0x37, 1], "2.999.1"),
            (&[0x4f, 7], "1.39.7"),
            (&[0x55, 4, 0x81, 0x48], "2.5.4.200"),
            (
                b"\x69\x83\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
                "2.25.340282366920938463463374607431768211455",
            ),
        ] {
            check(&[&[(kind, UTF8, b"a")]], &format!("{number}=#0C0161"));
        }
    }

    #[test]
    fn invalid_text_is_dumped() {
        // openssl rejects these. No other value has the same text.
        for (tag, value) in [
            (BMP, &b"\xd8\x3d\xde\x00\0a"[..]),
            (BMP, b"\0aa"),
            (UNIVERSAL, b"\0\x11\0\0"),
            (UTF8, b"a\xff"),
            // An octet string, and a constructed string.
            (4, b"a"),
            (0x2c, b"\x0c\x01a"),
        ] {
            let text = text_of(&[&[(CN, tag, value)]]).unwrap();
            assert!(text.starts_with("CN=#"), "{text}");
        }
        // A second encoding of the number of `CN`, half a number, and one that is too large.
        for kind in [
            &[0x55, 4, 0x80, 3][..],
            &[0x55, 4, 0x83],
            &[[0xff; 20].as_slice(), &[0x7f]].concat(),
        ] {
            assert_eq!(text_of(&[&[(kind, UTF8, b"a")]]), None);
        }
    }

    #[test]
    fn attribute_names_are_unique() {
        for (at, (number, name)) in NAMES.iter().enumerate() {
            let others = NAMES.iter().skip(at + 1);
            for (other_number, other) in others {
                assert!(number != other_number && name != other, "{name}");
            }
        }
    }
}
