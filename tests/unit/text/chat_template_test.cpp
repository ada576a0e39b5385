#include "text/chat_template.h"

#include <doctest/doctest.h>

#include <vector>

#include "graft/error.h"
#include "tokenizer_folder.h"

using graft::ChatMessage;
using graft::ChatTemplate;
using graft::Error;

namespace {

std::string render(std::string_view jinja, std::vector<ChatMessage> messages) {
  return ChatTemplate(jinja).render(messages, true);
}

/// Of SmolLM2-135M-Instruct.
constexpr const char* kSmolLm =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The shape of Qwen2.5's, its tool branches shortened.
constexpr const char* kQwen = R"({%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\n{\"name\": <function-name>}\n" }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or )"
                              R"((message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
)";

}  // namespace

// The answers are Transformers 5.23.0's (apply_chat_template with add_generation_prompt).
TEST_CASE("SmolLM2's template gives the prompt that Transformers gives") {
  CHECK(render(kSmolLm, {{"user", "What is the capital of France?"}}) ==
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n");
  CHECK(render(kSmolLm, {{"system", "Be brief."}, {"user", " a "}, {"assistant", "b"}}) ==
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n a <|im_end|>\n"
        "<|im_start|>assistant\nb<|im_end|>\n<|im_start|>assistant\n");
}

TEST_CASE("Qwen2.5's template is read without its tools") {
  CHECK(render(kQwen, {{"user", "Hi"}}) ==
        "<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n");
  CHECK(render(kQwen, {{"system", "S"}, {"user", "Hi"}}) ==
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST_CASE("plain ChatML has no system turn of its own") {
  const char* plain =
      "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
      "{% endif %}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
      "message['content'] | trim + '<|im_end|>' + '\\n'}}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
  CHECK(render(plain, {{"user", "\u3000 Hi \n\u001c"}}) ==
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST_CASE("templates of another shape are refused") {
  const std::string smol = kSmolLm;
  const std::string cases[] = {
      "",
      "{{ bos_token }}" + smol,
      smol + "{{ 'x' }}",
      "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}",
      "{% for message in messages %}{{'<|im_start|>' + message['role']",
      "{{ 'unended }}",
      "{% if tools %}",
      std::string(kQwen).replace(std::string(kQwen).find("{%- else %}\n    {%- if"), 11, ""),
  };
  for (const std::string& jinja : cases) {
    CAPTURE(jinja.substr(0, 120));
    CHECK_THROWS_AS(ChatTemplate{jinja}, Error);
  }
}

TEST_CASE("messages that no template takes are refused") {
  CHECK_THROWS_WITH_AS(render(kSmolLm, {}), doctest::Contains("at least one message"), Error);
  CHECK_THROWS_WITH_AS(render(kSmolLm, {{"tool", "x"}}), doctest::Contains("unknown role 'tool'"),
                       Error);
}

TEST_CASE("the chat template comes from tokenizer_config.json or chat_template.jinja") {
  TokenizerFolder folder(word_tokenizer());
  const std::vector<ChatMessage> messages{{"user", "Hi"}};
  CHECK_THROWS_WITH_AS(folder.open().chat_prompt(messages),
                       doctest::Contains("has no chat template; write the whole prompt yourself "
                                         "with --prompt"),
                       Error);
  graft::Value config;
  config.set("chat_template", "{{ messages }}");
  folder.write("tokenizer_config.json", graft::to_json(config));
  CHECK_THROWS_WITH_AS(folder.open().chat_prompt(messages),
                       doctest::Contains("tokenizer_config.json: the chat template is not one"),
                       Error);
  graft::Value named;
  named.set("name", "default");
  named.set("template", kSmolLm);
  config.set("chat_template", graft::Value::Array{named});
  folder.write("tokenizer_config.json", graft::to_json(config));
  CHECK(folder.open().chat_prompt(messages).find("SmolLM") != std::string::npos);
  folder.write("chat_template.jinja", kQwen);
  CHECK(folder.open().chat_prompt(messages).find("Qwen") != std::string::npos);
  // A conversation that is over has the same turns, and no opened one behind them.
  CHECK(folder.open().chat_text(messages) + "<|im_start|>assistant\n" ==
        folder.open().chat_prompt(messages));
}
