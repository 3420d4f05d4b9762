# For recipes to source: once FOLDER ARGUMENTS…, one run of "$python". What is finished in FOLDER is taken as it is, what was
# cut off goes on.
once() {
  local folder=$1; shift
  [[ -f $folder/metrics.json ]] || "$python" -m qwen3asr_train run_dir="$folder" resume=auto "$@"
}
