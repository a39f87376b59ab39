"""Operations of converted networks: reading them out of ``.tflite`` files, writing op models, counting, search spaces."""
