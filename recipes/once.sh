# For recipes to source: once FOLDER ARGUMENTS…, one run of "$python". What is finished in FOLDER is taken as it is,
# whatever made it, what was cut off goes on: a recipe that has changed wants another folder.
once() {
  local folder=$1; shift
  [[ -f $folder/metrics.json ]] || "$python" -m qwen3asr_train run_dir="$folder" resume=auto "$@"
}
