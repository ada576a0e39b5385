/* The main path from C: plan, convert, load, run on raw buffers.
 *   embed MODEL OUTPUT */
#include <graft/graft.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int32_t progress(void* calls, const char* stage, uint64_t done, uint64_t total) {
  (void)stage, (void)done, (void)total;
  ++*(int*)calls;
  return 1; /* go on */
}

static int fail(int code, const char* message) {
  fprintf(stderr, "%s\n", message);
  return code;
}

int main(int argc, char** argv) {
  if (argc != 3) return fail(GRAFT_ERROR_USAGE, "give a model folder and one to write");
  const char* options =
      "{\"quantization_config\": {\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true}}";
  int calls = 0;
  const graft_callbacks callbacks = {&calls, NULL, progress};
  char message[1024];

  char* plan = NULL;
  int code = graft_plan(argv[1], options, &callbacks, &plan, message, sizeof(message));
  if (code) return fail(code, message);
  printf("plan: %s\n", strstr(plan, "\"method\": \"bitsandbytes\"") ? "bitsandbytes" : "?");
  graft_free_text(plan);

  code = graft_convert(argv[1], options, &callbacks, argv[2], message, sizeof(message));
  if (code) return fail(code, message);

  graft_model* model = NULL;
  code = graft_load(argv[2], NULL, &callbacks, &model, message, sizeof(message));
  if (code) return fail(code, message);
  const int64_t ids[] = {1, 2, 3, 4}, width = graft_output_width(model);
  float* logits = malloc(4 * (size_t)width * sizeof(float));
  code = logits ? graft_forward(model, ids, 1, 4, logits, 4 * (size_t)width, message, sizeof(message))
                : fail(GRAFT_ERROR_RESOURCE, "out of memory");
  if (code) return fail(code, message);
  printf("logits: 1 x 4 x %lld\nprogress was reported: %s\n", (long long)width,
         calls > 1 ? "yes" : "no");

  code = graft_forward(model, ids, 1, 4, logits, 3, message, sizeof(message));
  printf("a buffer too small: code %d, %s\n", code, message);
  code = graft_load("nowhere", NULL, NULL, &model, message, sizeof(message));
  printf("a wrong folder: code %d, %s\n", code, message);
  free(logits);
  graft_free_model(model);
  return 0;
}
