"""Settings."""

import pytest

from obelisk.rag.config import OPTIONS, ConfigError, Settings, config_file, load


def test_defaults_are_valid():
    assert load({}) == Settings()


def test_later_words_win(tmp_path):
    file = tmp_path / "obelisk.yaml"
    file.write_text("rag:\n  chunk_size: 1000\n  chunk_overlap: 10\n  retrieve_top_k: 2\n  watch_docs: false\n")
    environ = {"OBELISK_RAG__CHUNK_SIZE": "1100", "OBELISK_RAG__CHUNK_OVERLAP": "11", "CHUNK_OVERLAP": "12"}
    settings = load(environ, {"api_port": "9000"}, file)
    assert (settings.chunk_size, settings.chunk_overlap, settings.retrieve_top_k) == (1100, 12, 2)
    assert settings.watch_docs is False and settings.api_port == 9000


def test_every_mistake_is_told_at_once(tmp_path):
    file = tmp_path / "obelisk.yaml"
    file.write_text("rag:\n  chunk_sise: 1000\n  api_port: {}\n")
    environ = {
        "API_PORT": "70000",
        "CHUNK_SIZE": "many",
        "OLLAMA_URL": "ollama:11434",
        "VECTOR_DB": "chroma",
        "WATCH_DOCS": "maybe",
        "LITELLM_API_URL": "http://litellm:port",
        "MILVUS_COLLECTION": "no-dashes",
        "EMBEDDING_PROVIDER": "openai",
        "COMPLETION_PROVIDER": "litellm",
        "API_TOKEN_FILE": str(tmp_path / "gone"),
        "RAG_TEMPLATE_PATH": str(tmp_path / "gone"),
    }
    with pytest.raises(ConfigError) as caught:
        load(environ, {"nonsense": "1"}, file)
    assert len(caught.value.problems) == 14, caught.value.problems
    for name in [*environ, "chunk_sise", "api_port", "nonsense", "OPENAI_API_KEY", "LITELLM_API_KEY"]:
        if not name.endswith("PROVIDER"):
            assert name in str(caught.value), name


def test_an_overlap_must_be_smaller_than_a_chunk():
    with pytest.raises(ConfigError, match="CHUNK_OVERLAP"):
        load({"CHUNK_SIZE": "200", "CHUNK_OVERLAP": "200"})


def test_empty_variables_say_nothing():
    assert load({name.upper(): "" for name in OPTIONS}) == Settings()


def test_secrets_come_from_files_and_are_not_shown(tmp_path):
    bare, lines = tmp_path / "bare", tmp_path / "lines"
    bare.write_text("canary-one\n")
    lines.write_text("OTHER=x\nLITELLM_API_TOKEN=canary-two\n")
    settings = load({"API_TOKEN_FILE": str(bare), "TOKENS_FILE": str(lines), "COMPLETION_PROVIDER": "litellm"})
    assert (settings.api_token, settings.litellm_api_key) == ("canary-one", "canary-two")
    assert "canary" not in repr(settings) + str(settings.shown())
    with pytest.raises(ConfigError, match="both set"):
        load({"API_TOKEN": "a", "API_TOKEN_FILE": str(bare)})


def test_a_wrong_secret_is_not_repeated(tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("\n")
    with pytest.raises(ConfigError) as caught:
        load({"OPENAI_API_KEY_FILE": str(empty), "CHUNK_SIZE": "1", "API_TOKEN": "canary"})
    assert "canary" not in str(caught.value)


def test_a_secret_that_is_no_text_is_told_with_its_place(tmp_path):
    file = tmp_path / "token"
    file.write_bytes(b"secret\xff\xfe")
    with pytest.raises(ConfigError) as caught:
        load({"API_TOKEN_FILE": str(file)})
    assert caught.value.problems == [f"API_TOKEN_FILE names {file}, which is no text: byte 7 is no UTF-8; write it anew"]


def test_host_and_port_of_milvus_are_understood():
    assert load({"MILVUS_HOST": "m"}).milvus_uri == "http://m:19530"
    assert load({"MILVUS_HOST": "m", "MILVUS_PORT": "1"}).milvus_uri == "http://m:1"
    assert load({"MILVUS_HOST": "m", "MILVUS_URI": "http://n:2/"}).milvus_uri == "http://n:2"


def test_the_nearest_file_is_read(tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    (home / ".config/obelisk").mkdir(parents=True)
    here.mkdir()
    assert config_file({}, home, here) is None
    (here / "obelisk.yaml").write_text("")
    assert config_file({}, home, here) == here / "obelisk.yaml"
    (home / ".config/obelisk/config.yaml").write_text("")
    assert config_file({}, home, here) == home / ".config/obelisk/config.yaml"
    assert config_file({"OBELISK_CONFIG": "/x"}, home, here).as_posix() == "/x"


def test_a_file_that_is_no_table_is_refused(tmp_path):
    for text in ("- a\n", "rag: 3\n", "a: [\n"):
        file = tmp_path / "f.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError):
            load({}, None, file)
