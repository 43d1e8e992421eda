//! What a Debian archive must show before anything of it is believed, tried with keys made here on a server made here.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use imgbuild::debian::archive::{Foreign, Wanted, read_suite};
use imgbuild::debian::openpgp::Keyring;
use imgbuild::fetch::{Http, HttpConfig, Url};
use layers::Digest;
use pgp::composed::{
    ArmorOptions, CleartextSignedMessage, KeyType, SecretKeyParamsBuilder, SignedKeyDetails, SignedPublicKey,
    SignedSecretKey, SubkeyParamsBuilder,
};
use pgp::crypto::hash::HashAlgorithm;
use pgp::crypto::public_key::PublicKeyAlgorithm;
use pgp::packet::{
    PubKeyInner, PublicKey, SecretKey, Signature, SignatureConfig, SignatureType, Subpacket, SubpacketData,
};
use pgp::types::{Duration, KeyVersion, Password, SignedUser, SigningKey, Tag, Timestamp};
use rand::thread_rng;

use crate::server::{Answer, Server};
use crate::support::random::{Random, seed};
use crate::support::run::outcome;

const DAY: i64 = 86_400;

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

fn timestamp(at: i64) -> Timestamp {
    Timestamp::from_secs(u32::try_from(at).unwrap())
}

fn lasting(seconds: i64) -> Duration {
    std::time::Duration::from_secs(u64::try_from(seconds).unwrap()).try_into().unwrap()
}

/// A key made ten days ago.
fn key(kind: KeyType) -> SignedSecretKey {
    let mut params = SecretKeyParamsBuilder::default();
    params.key_type(kind).can_certify(true).can_sign(true).created_at(timestamp(now() - 10 * DAY));
    params.primary_user_id("A test <a@test.example>".into());
    params.build().unwrap().generate(thread_rng()).unwrap()
}

fn ed25519() -> SignedSecretKey {
    key(KeyType::Ed25519Legacy)
}

/// The public part, whose self-signature says that the key lasts so many seconds from its making.
fn lasting_for(key: &SignedSecretKey, seconds: i64) -> SignedPublicKey {
    let mut public = SignedPublicKey::from(key.clone());
    let mut config = config(&key.primary_key, SignatureType::CertPositive, HashAlgorithm::Sha256, now() - 9 * DAY);
    let expires = SubpacketData::KeyExpirationTime(lasting(seconds));
    config.hashed_subpackets.push(Subpacket::regular(expires).unwrap());
    let user = &mut public.details.users[0];
    let primary = &public.primary_key;
    user.signatures =
        vec![config.sign_certification(&key.primary_key, primary, &Password::empty(), Tag::UserId, &user.id).unwrap()];
    public
}

fn config(key: &impl SigningKey, kind: SignatureType, hash: HashAlgorithm, at: i64) -> SignatureConfig {
    let mut config = SignatureConfig::v4(kind, key.algorithm(), hash);
    config.hashed_subpackets = vec![
        Subpacket::regular(SubpacketData::SignatureCreationTime(timestamp(at))).unwrap(),
        Subpacket::regular(SubpacketData::IssuerFingerprint(key.fingerprint())).unwrap(),
    ];
    config.unhashed_subpackets = vec![Subpacket::regular(SubpacketData::IssuerKeyId(key.legacy_key_id())).unwrap()];
    config
}

/// How a text is signed.
struct Signing<'a> {
    key: &'a SignedSecretKey,
    hash: HashAlgorithm,
    at: i64,
    lasts: Option<i64>,
}

fn plain(key: &SignedSecretKey) -> Signing<'_> {
    Signing { key, hash: HashAlgorithm::Sha256, at: now() - 60, lasts: None }
}

fn sign(text: &str, signings: &[Signing<'_>]) -> String {
    let message = CleartextSignedMessage::new_many(text, |normalised| {
        let made = signings.iter().map(|signing| -> pgp::errors::Result<Signature> {
            let key = &signing.key.primary_key;
            let mut config = config(key, SignatureType::Text, signing.hash, signing.at);
            if let Some(lasts) = signing.lasts {
                let expires = SubpacketData::SignatureExpirationTime(lasting(lasts));
                config.hashed_subpackets.push(Subpacket::regular(expires)?);
            }
            config.sign(key, &Password::empty(), normalised.as_bytes())
        });
        made.collect()
    });
    message.unwrap().to_armored_string(ArmorOptions::default()).unwrap()
}

fn ring(keys: &[&SignedPublicKey]) -> Keyring {
    let mut ring = Keyring::default();
    for key in keys {
        ring.extend(Keyring::parse(&key.to_armored_bytes(ArmorOptions::default()).unwrap()).unwrap());
    }
    ring
}

fn ring_of(key: &SignedSecretKey) -> Keyring {
    ring(&[&SignedPublicKey::from(key.clone())])
}

fn date(at: i64) -> String {
    let text = layers::oci::rfc3339(at);
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months[text[5..7].parse::<usize>().unwrap() - 1];
    format!("Mon, {} {month} {} {} UTC", &text[8..10], &text[..4], &text[11..19])
}

const PACKAGES: &str = "Package: aa\nVersion: 1\nArchitecture: amd64\nFilename: pool/a_1_amd64.deb\nSize: 3\n\
    SHA256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\n";

fn gzipped(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn release() -> String {
    let packages = gzipped(PACKAGES);
    format!(
        "Origin: Debian\nSuite: stable\nCodename: trixie\nDate: {}\nValid-Until: {}\nAcquire-By-Hash: yes\nSHA256:\n {} {} \
         main/binary-amd64/Packages.gz\n",
        date(now() - DAY),
        date(now() + DAY),
        Digest::of(&packages).hex(),
        packages.len()
    )
}

fn archive(inrelease: &str) -> Server {
    let hash = Digest::of(&gzipped(PACKAGES)).hex();
    Server::of(BTreeMap::from([
        ("/debian/dists/trixie/InRelease".into(), inrelease.into()),
        (format!("/debian/dists/trixie/main/binary-amd64/by-hash/SHA256/{hash}"), gzipped(PACKAGES)),
    ]))
}

/// Reads trixie from these mirrors: the names of its packages, or what is said.
fn read(bases: &[Url], keyring: &Keyring, foreign: Foreign, seen: Option<i64>) -> Result<Vec<String>, String> {
    let wanted = Wanted {
        suite: "trixie",
        components: &["main".to_owned()],
        architectures: &["amd64"],
        bases,
        keyring,
        origin: Some("Debian"),
        foreign,
        store: None,
        seen,
        now: now(),
    };
    let suite = read_suite(&Http::new(HttpConfig::default()), &wanted).map_err(|error| error.to_string())?;
    Ok(suite.packages["amd64"].iter().map(|package| package.name().to_owned()).collect())
}

fn read_one(inrelease: &str, keyring: &Keyring) -> Result<Vec<String>, String> {
    read(&[archive(inrelease).url("/debian")], keyring, Foreign::Refuse, None)
}

#[track_caller]
fn refused(read: Result<Vec<String>, String>, why: &str) {
    let error = read.expect_err("it was accepted");
    assert!(error.contains(why), "`{error}` does not say `{why}`");
}

#[test]
fn a_good_signature_is_accepted() {
    for key in [ed25519(), key(KeyType::Rsa(2048)), key(KeyType::Ed25519)] {
        assert_eq!(read_one(&sign(&release(), &[plain(&key)]), &ring_of(&key)).unwrap(), ["aa"]);
    }
}

#[test]
fn a_signature_by_a_bound_subkey_is_accepted_and_by_any_other_is_not() {
    let mut subkey = SubkeyParamsBuilder::default();
    subkey.key_type(KeyType::Ed25519Legacy).can_sign(true);
    let mut params = SecretKeyParamsBuilder::default();
    params.key_type(KeyType::Ed25519Legacy).can_certify(true).can_sign(true).primary_user_id("s".into());
    let whole = params.subkeys(vec![subkey.build().unwrap()]).build().unwrap().generate(thread_rng()).unwrap();
    let by_subkey = |whole: &SignedSecretKey| {
        let message = CleartextSignedMessage::new_many(&release(), |text| {
            let key = &whole.secret_subkeys[0].key;
            let config = config(key, SignatureType::Text, HashAlgorithm::Sha256, now());
            Ok(vec![config.sign(key, &Password::empty(), text.as_bytes())?])
        });
        message.unwrap().to_armored_string(ArmorOptions::default()).unwrap()
    };
    let public = SignedPublicKey::from(whole.clone());
    assert_eq!(read_one(&by_subkey(&whole), &ring(&[&public])).unwrap(), ["aa"]);
    let mut stolen = SignedPublicKey::from(ed25519());
    stolen.public_subkeys = public.public_subkeys;
    refused(read_one(&by_subkey(&whole), &ring(&[&stolen])), "no signature by a trusted key holds");
}

#[test]
fn an_unsigned_release_is_refused() {
    refused(read_one(&release(), &ring_of(&ed25519())), "it is not a signed text");
    let signed = sign(&release(), &[]);
    refused(read_one(&signed, &ring_of(&ed25519())), "is not trusted");
}

#[test]
fn a_wrong_key_is_refused() {
    let (ours, theirs) = (ed25519(), ed25519());
    refused(read_one(&sign(&release(), &[plain(&theirs)]), &ring_of(&ours)), "the key is not in the keyring");
}

#[test]
fn a_signature_that_names_our_key_and_was_made_by_another_is_refused() {
    let (ours, theirs) = (ed25519(), ed25519());
    let message = CleartextSignedMessage::new_many(&release(), |text| {
        let config = config(&ours.primary_key, SignatureType::Text, HashAlgorithm::Sha256, now());
        Ok(vec![config.sign(&theirs.primary_key, &Password::empty(), text.as_bytes())?])
    });
    let text = message.unwrap().to_armored_string(ArmorOptions::default()).unwrap();
    refused(read_one(&text, &ring_of(&ours)), "the signature does not fit the text");
}

#[test]
fn a_changed_text_is_refused() {
    let key = ed25519();
    let signed = sign(&release(), &[plain(&key)]).replace("Codename: trixie", "Codename: trixie ");
    // Blanks at the end of a line are not signed, and not handed on.
    assert!(read_one(&signed, &ring_of(&key)).is_ok());
    let signed = signed.replace("main/binary", "main/cinary");
    refused(read_one(&signed, &ring_of(&key)), "the signature does not fit the text");
}

#[test]
fn an_expired_key_is_refused() {
    let key = ed25519();
    let signed = sign(&release(), &[plain(&key)]);
    assert!(read_one(&signed, &ring(&[&lasting_for(&key, 20 * DAY)])).is_ok());
    refused(read_one(&signed, &ring(&[&lasting_for(&key, 5 * DAY)])), "the key has expired");
}

#[test]
fn an_expired_signature_is_refused() {
    let key = ed25519();
    let mut signing = plain(&key);
    (signing.at, signing.lasts) = (now() - 2 * DAY, Some(3 * DAY));
    assert!(read_one(&sign(&release(), &[signing]), &ring_of(&key)).is_ok());
    let mut signing = plain(&key);
    (signing.at, signing.lasts) = (now() - 2 * DAY, Some(DAY));
    refused(read_one(&sign(&release(), &[signing]), &ring_of(&key)), "it has expired");
}

#[test]
fn a_signature_from_the_future_is_refused() {
    let key = ed25519();
    let mut signing = plain(&key);
    signing.at = now() + 2 * DAY;
    refused(read_one(&sign(&release(), &[signing]), &ring_of(&key)), "it was made in the future");
}

#[test]
fn one_good_and_one_unknown_signature_are_accepted_in_either_order() {
    let (ours, theirs) = (ed25519(), ed25519());
    for signings in [[plain(&ours), plain(&theirs)], [plain(&theirs), plain(&ours)]] {
        assert_eq!(read_one(&sign(&release(), &signings), &ring_of(&ours)).unwrap(), ["aa"]);
    }
}

#[test]
fn a_signature_with_sha1_is_refused() {
    let key = key(KeyType::Rsa(2048));
    let mut signing = plain(&key);
    signing.hash = HashAlgorithm::Sha1;
    refused(read_one(&sign(&release(), &[signing]), &ring_of(&key)), "the hash SHA1 is too weak");
}

#[test]
fn a_short_rsa_key_is_refused() {
    // By hand: rPGP refuses to make one.
    let made = now() - 10 * DAY;
    let (public, secret) = KeyType::Rsa(1024).generate(thread_rng()).unwrap();
    let inner = PubKeyInner::new(KeyVersion::V4, PublicKeyAlgorithm::RSA, timestamp(made), None, public).unwrap();
    let primary = SecretKey::new(PublicKey::from_inner(inner).unwrap(), secret).unwrap();
    let template = ed25519().details;
    let user = template.users[0].id.clone();
    let certification = config(&primary, SignatureType::CertPositive, HashAlgorithm::Sha256, made)
        .sign_certification(&primary, primary.public_key(), &Password::empty(), Tag::UserId, &user)
        .unwrap();
    let details = SignedKeyDetails { users: vec![SignedUser::new(user, vec![certification])], ..template };
    let key = SignedSecretKey::new(primary, details, Vec::new(), Vec::new());
    refused(read_one(&sign(&release(), &[plain(&key)]), &ring_of(&key)), "fewer than 2048 bits");
}

#[test]
fn text_around_the_signed_message_is_refused() {
    let key = ed25519();
    let signed = sign(&release(), &[plain(&key)]);
    refused(read_one(&format!("Origin: Debian\n\n{signed}"), &ring_of(&key)), "something stands before");
    refused(read_one(&format!("{signed}Origin: Debian\n"), &ring_of(&key)), "it is not a signed text");
    refused(read_one(&format!("{signed}{signed}"), &ring_of(&key)), "it is not a signed text");
}

#[test]
fn a_message_cut_anywhere_is_refused() {
    let key = ed25519();
    let signed = sign(&release(), &[plain(&key)]);
    let ring = ring_of(&key);
    // The last bytes are the armour's own end, without which the signature is whole.
    let end = signed.rfind("-----END").unwrap();
    for at in (0..end - 12).step_by(7) {
        assert!(ring.verify(&signed[..at], now()).is_err(), "cut at {at}");
    }
}

#[test]
fn what_stands_behind_a_good_signature_is_read_as_well() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let key = ed25519();
    let signed = sign(&release(), &[plain(&key)]);
    let (text, armour) = signed.split_once("-----BEGIN PGP SIGNATURE-----").unwrap();
    let body: String =
        armour.lines().skip_while(|line| !line.is_empty()).take_while(|line| !line.starts_with(['=', '-'])).collect();
    let packets = STANDARD.decode(body).unwrap();
    let message = |behind: &[u8]| {
        let body = STANDARD.encode([&packets, behind].concat());
        format!("{text}-----BEGIN PGP SIGNATURE-----\n\n{body}\n-----END PGP SIGNATURE-----\n")
    };
    let ring = ring_of(&key);
    assert!(ring.verify(&message(&[]), now()).is_ok());
    // The beginning of a packet, something that is none, a whole packet that is no signature, and half a signature.
    for behind in [&[0xc7, 0x35, 0x2f][..], &[0], &[0xcb, 0], &packets[..packets.len() / 2]] {
        assert!(ring.verify(&message(behind), now()).is_err(), "{behind:?}");
    }
    assert!(ring.verify(&message(&packets), now()).is_ok());
}

#[test]
fn line_ends_of_windows_are_accepted_and_read_as_ours() {
    let key = ed25519();
    let signed = sign(&release(), &[plain(&key)]);
    let text = ring_of(&key).verify(&signed.replace('\n', "\r\n"), now()).unwrap();
    assert_eq!(text.trim_end(), release().trim_end());
    assert_eq!(read_one(&signed.replace('\n', "\r\n"), &ring_of(&key)).unwrap(), ["aa"]);
}

#[test]
fn duplicate_fields_are_refused() {
    let key = ed25519();
    let twice = release().replace("Codename: trixie", "Codename: trixie\nCodename: sid");
    refused(read_one(&sign(&twice, &[plain(&key)]), &ring_of(&key)), "it has the field `Codename` twice");
}

#[test]
fn a_release_past_its_validity_or_from_the_future_is_refused() {
    let key = ed25519();
    let past = release().replace(&date(now() + DAY), &date(now() - 60));
    refused(read_one(&sign(&past, &[plain(&key)]), &ring_of(&key)), "it was valid until");
    let future = release().replace(&date(now() - DAY), &date(now() + 3 * DAY));
    refused(read_one(&sign(&future, &[plain(&key)]), &ring_of(&key)), "lies in the future");
}

#[test]
fn another_suite_is_refused() {
    let key = ed25519();
    let other = release().replace("Codename: trixie", "Codename: sid").replace("Suite: stable", "Suite: unstable");
    refused(read_one(&sign(&other, &[plain(&key)]), &ring_of(&key)), "not for `trixie`");
}

#[test]
fn a_release_older_than_the_locks_is_refused() {
    let key = ed25519();
    let mirror = archive(&sign(&release(), &[plain(&key)]));
    let bases = [mirror.url("/debian")];
    assert!(read(&bases, &ring_of(&key), Foreign::Refuse, Some(now() - 2 * DAY)).is_ok());
    refused(read(&bases, &ring_of(&key), Foreign::Refuse, Some(now() - 60)), "which images.lock has seen");
}

#[test]
fn an_origin_of_somebody_else_is_passed_over_on_the_machines_mirrors_and_refused_on_configured_ones() {
    let (ours, theirs) = (ed25519(), ed25519());
    let good = archive(&sign(&release(), &[plain(&ours)]));
    for foreign in [
        sign(&release().replace("Origin: Debian", "Origin: Vendor"), &[plain(&theirs)]),
        sign(&release().replace("Origin: Debian\n", ""), &[plain(&theirs)]),
    ] {
        let vendor = archive(&foreign);
        let bases = [vendor.url("/debian"), good.url("/debian")];
        assert_eq!(read(&bases, &ring_of(&ours), Foreign::Skip, None).unwrap(), ["aa"]);
        refused(read(&bases[..1], &ring_of(&ours), Foreign::Skip, None), "suite `trixie` is on none of the mirrors");
        refused(read(&bases, &ring_of(&ours), Foreign::Refuse, None), "the key is not in the keyring");
    }
    // Signed by our key, and still not what was configured.
    let vendor = archive(&sign(&release().replace("Origin: Debian", "Origin: Vendor"), &[plain(&ours)]));
    refused(
        read(&[vendor.url("/debian")], &ring_of(&ours), Foreign::Refuse, None),
        "is of Origin `Vendor`, not `Debian`",
    );
    // Who says to be Debian is held to it, wherever the mirror was found.
    let liar = archive(&sign(&release(), &[plain(&theirs)]));
    let bases = [liar.url("/debian"), good.url("/debian")];
    refused(read(&bases, &ring_of(&ours), Foreign::Skip, None), "the key is not in the keyring");
}

#[test]
fn a_list_of_packages_with_another_hash_or_size_is_refused() {
    let key = ed25519();
    let signed = sign(&release(), &[plain(&key)]);
    let packages = gzipped(PACKAGES);
    let hash = Digest::of(&packages).hex();
    let by_hash = format!("/debian/dists/trixie/main/binary-amd64/by-hash/SHA256/{hash}");
    let serve = |body: Vec<u8>| {
        Server::of(BTreeMap::from([
            ("/debian/dists/trixie/InRelease".into(), signed.clone().into_bytes()),
            (by_hash.clone(), body),
        ]))
    };
    let other = gzipped(&PACKAGES.replace("Version: 1", "Version: 2"));
    let mirror = serve(other[..packages.len().min(other.len())].to_vec());
    refused(read(&[mirror.url("/debian")], &ring_of(&key), Foreign::Refuse, None), "is not what InRelease says");
    let mirror = serve(packages[..packages.len() - 1].to_vec());
    refused(read(&[mirror.url("/debian")], &ring_of(&key), Foreign::Refuse, None), "is not what InRelease says");
    let mirror = serve([packages.as_slice(), b"x"].concat());
    refused(read(&[mirror.url("/debian")], &ring_of(&key), Foreign::Refuse, None), "is larger than");
}

#[test]
fn a_list_that_is_not_there_by_hash_is_taken_by_name() {
    let key = ed25519();
    let mirror = Server::of(BTreeMap::from([
        ("/debian/dists/trixie/InRelease".into(), sign(&release(), &[plain(&key)]).into_bytes()),
        ("/debian/dists/trixie/main/binary-amd64/Packages.gz".into(), gzipped(PACKAGES)),
    ]));
    assert_eq!(read(&[mirror.url("/debian")], &ring_of(&key), Foreign::Refuse, None).unwrap(), ["aa"]);
    let asked = mirror.asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked[1].contains("/by-hash/SHA256/"), "{asked:?}");
}

#[test]
fn two_stanzas_of_one_version_with_different_hashes_are_refused() {
    let key = ed25519();
    let twice = gzipped(&format!("{PACKAGES}\n{}", PACKAGES.replace("SHA256: 2c", "SHA256: 2d")));
    let hash = Digest::of(&twice).hex();
    let text = release()
        .replace(&Digest::of(&gzipped(PACKAGES)).hex(), &hash)
        .replace(&format!(" {} ", gzipped(PACKAGES).len()), &format!(" {} ", twice.len()));
    let mirror = Server::of(BTreeMap::from([
        ("/debian/dists/trixie/InRelease".into(), sign(&text, &[plain(&key)]).into_bytes()),
        ("/debian/dists/trixie/main/binary-amd64/Packages.gz".into(), twice),
    ]));
    refused(read(&[mirror.url("/debian")], &ring_of(&key), Foreign::Refuse, None), "`aa` is listed twice in version 1");
}

#[test]
fn a_mirror_that_is_down_or_empty_is_passed_over() {
    let key = ed25519();
    let good = archive(&sign(&release(), &[plain(&key)]));
    let empty = Server::of(BTreeMap::new());
    let forbidden = Server::start(|_| Answer::status(403));
    let bases = [empty.url("/debian"), forbidden.url("/debian"), good.url("/debian")];
    assert_eq!(read(&bases, &ring_of(&key), Foreign::Refuse, None).unwrap(), ["aa"]);
    let error = read(&bases[..2], &ring_of(&key), Foreign::Refuse, None).unwrap_err();
    assert!(error.contains("/debian/dists/trixie/InRelease: not there") && error.contains("403"), "{error}");
}

/// A home of gpg's own with a key of this kind, and the exported key.
fn gpg_key(folder: &Path, algorithm: &str, subkey: bool) -> (impl Fn() -> Command + use<>, std::path::PathBuf) {
    let home = folder.join("gnupg");
    std::fs::create_dir(&home).unwrap();
    std::fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let gpg = move || {
        let mut command = Command::new("gpg");
        command.env("GNUPGHOME", &home).args(["--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback"]);
        command
    };
    let usage = if subkey { "cert" } else { "sign,cert" };
    outcome(gpg().args(["--passphrase", "", "--quick-gen-key", "Test <t@test.example>", algorithm, usage, "1y"]))
        .success();
    if subkey {
        let list = outcome(gpg().args(["--with-colons", "--list-keys"])).success();
        let print =
            list.lines().find_map(|line| line.strip_prefix("fpr:::::::::")).unwrap().trim_end_matches(':').to_owned();
        outcome(gpg().args(["--passphrase", "", "--quick-add-key", &print, algorithm, "sign", "1y"])).success();
    }
    let ring = folder.join("ring.gpg");
    outcome(gpg().arg("--export").arg("--output").arg(&ring)).success();
    (gpg, ring)
}

#[test]
fn real_gpgv_accepts_whatever_is_accepted() {
    let mut random = Random::of(seed());
    for (algorithm, hash, subkey) in [
        ("rsa2048", "SHA512", false),
        ("rsa3072", "SHA256", true),
        ("ed25519", "SHA512", true),
        ("ed25519", "SHA256", false),
        ("nistp256", "SHA256", false),
        ("nistp384", "SHA384", false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (gpg, ring) = gpg_key(folder.path(), algorithm, subkey);
        let plain = folder.path().join("Release");
        // Dashes, blanks at line ends and empty lines are what cleartext signatures are difficult about.
        let text = format!("{}- dash\n-----BEGIN x\n\nblank \t\nFrom me\n\n", release());
        std::fs::write(&plain, &text).unwrap();
        let signed =
            outcome(gpg().args(["--digest-algo", hash, "--output", "-", "--clear-sign"]).arg(&plain)).success();
        let gpgv = |message: &[u8]| {
            let path = folder.path().join("message");
            std::fs::write(&path, message).unwrap();
            let done = outcome(Command::new("gpgv").arg("--keyring").arg(&ring).args(["--output", "-"]).arg(&path));
            (done.status == 0).then_some(done.stdout)
        };
        let keyring = Keyring::parse(&std::fs::read(&ring).unwrap()).unwrap();
        let unpadded =
            |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_end().to_owned();
        let ours = keyring.verify(&signed, now()).unwrap_or_else(|error| panic!("{algorithm}: {error}"));
        assert_eq!(unpadded(&ours), unpadded(&text), "{algorithm}");
        assert!(gpgv(signed.as_bytes()).is_some(), "{algorithm}");
        let (mut accepted, mut refused) = (0, 0);
        for _ in 0..40 {
            let mut bytes = signed.clone().into_bytes();
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = 32 + random.below(95) as u8,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b" \n\r-=A"[random.below(6)]),
                _ => bytes.truncate(at),
            }
            let Ok(message) = String::from_utf8(bytes) else { continue };
            match keyring.verify(&message, now()) {
                Ok(text) => {
                    accepted += 1;
                    let theirs = gpgv(message.as_bytes());
                    let theirs =
                        theirs.unwrap_or_else(|| panic!("{algorithm}: gpgv refuses what we accept:\n{message}"));
                    assert_eq!(unpadded(&text), unpadded(&theirs), "{algorithm}:\n{message}");
                }
                Err(_) => refused += 1,
            }
        }
        println!("{algorithm}: {accepted} changes did not matter, {refused} were refused");
        assert!(refused > 0);
        outcome(Command::new("gpgconf").arg("--homedir").arg(folder.path().join("gnupg")).args(["--kill", "all"]))
            .success();
    }
}

#[test]
fn a_keyring_that_is_cut_or_changed_is_refused_or_trusts_nothing_new() {
    let key = key(KeyType::Rsa(2048));
    let bytes = pgp::ser::Serialize::to_bytes(&SignedPublicKey::from(key.clone())).unwrap();
    let signed = sign(&release(), &[plain(&ed25519())]);
    let good = sign(&release(), &[plain(&key)]);
    assert!(Keyring::parse(&bytes).unwrap().verify(&good, now()).is_ok());
    for at in 0..bytes.len() {
        if let Ok(ring) = Keyring::parse(&bytes[..at]) {
            assert!(ring.verify(&signed, now()).is_err(), "cut at {at}");
        }
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        if let Ok(ring) = Keyring::parse(&changed) {
            assert!(ring.verify(&signed, now()).is_err(), "changed at {at}");
        }
    }
}
