"""What the model types that transformers 5 knows are; asked of those that cannot be trained here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_TYPES: Final[Mapping[str, str]] = {
    "a mixture of experts": """
        afmoe aria aria_text axk1 axk2 bailing_hybrid beam cohere2_moe dbrx deepseek_ocr2
        deepseek_v32 deepseek_v4 doge dots1 dots3_note dots3_note_text
        ernie4_5_moe ernie4_5_vl_moe exaone_moe flex_olmo flint glm4_moe glm4v_moe
        glm5_next glm_moe_dsa granitemoe_swa granitemoeshared hunyuan_v1_moe
        hy_v3 hy_v4 inkling2 inkling2_text inkling_mm_model inkling_text jetmoe kimi_k25 kolibri1
        laguna lfm2_moe llama4 llama4_text longcat_flash mellum mimo_v2_flash minimax minimax_m2
        minimax_m3_vl minimax_m3_vl_text mistral4 mistral_large4 nllb-moe
        qwen3_next qwen3_vl_moe qwen4_exp
        qwen4_exp_text solar_open step3p5 step3p7 switch_transformers unlimited_ocr zaya
    """,
    "a recurrent or state-space model": """
        bamba falcon_mamba jamba mamba mamba2 recurrent_gemma rwkv xlstm zamba
        zamba2
    """,
    "a hybrid of attention with convolutions or linear attention": """
        kimi_linear lfm3 olmo_hybrid
    """,
    "an encoder-decoder": """
        bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt led longt5 m2m_100
        marian mbart mt5 mvp pegasus pegasus_x plbart prophetnet rag t5 t5gemma umt5
    """,
    "an encoder": """
        albert bert bert-generation big_bird bros camembert canine clip_text_model convbert
        data2vec-text deberta deberta-v2 distilbert dpr electra embedding_gemma2 ernie esm esmc
        eurobert flaubert fnet funnel gte ibert jina_embeddings_v3 layoutlm layoutlmv2 layoutlmv3
        layoutxlm lilt longformer luke lxmert markuplm megatron-bert mobilebert modernbert
        molmo2_text mpnet mra neomme nomic_bert nystromformer openai_privacy_filter reformer rembert
        roberta roberta-prelayernorm roc_bert roformer splinter squeezebert tapas tipsv2_text_model
        ultrabert xlm xlm-roberta xlm-roberta-xl xlnet xmod yoso
    """,
    "a vision-language model": """
        aimv2 align altclip aya_vision blip blip-2 bridgetower chameleon chinese_clip clip clipseg
        cohere2_vision cohere_compass colmodernvbert colpali colqwen2 cosmos3_edge cosmos3_omni
        deepseek_vl deepseek_vl_hybrid emu3 evolla exaone4_5 fast_vlm flava flava_image_model
        florence2 fuyu git glm46v glm4v glm_image glm_ocr glmga
        got_ocr2 granite4_vision granite_docling groupvit hunyuan_vl hyperclovax_vision_v2 idefics
        idefics2 idefics3 instructblip instructblipvideo janus kosmos-2 kosmos-2.5 lfm2_vl lfm3_vl
        lighton_ocr llava_next_video metaclip_2 minicpm_ocr minicpmv4_6 minicpmv4_7 mllama
        modernvbert molmo2 molmo2_adapter muse_glimmer muse_glimmer_assistant muse_spark
        nemotron_h_omni nougat ovis2 paddleocr_vl paligemma perception_lm pi0 pix2struct
        pp_chart2table pp_formulanet qianfan_ocr qwen2_5_omni_thinker qwen2_5_vl qwen2_vl
        qwen3_omni_moe_thinker qwen3_vl shieldgemma2 siglip siglip2 smolvlm t5gemma2 tipsv2 trocr
        udop ultravbert video_llama_3 video_llava videoprism vilt vipllava vision-encoder-decoder
        vision-text-dual-encoder visual_bert xclip
    """,
    "a model of images": """
        aimv2_vision_model beit bit chmv2 conditional_detr convnext convnextv2 cvt d_fine dab-detr
        data2vec-vision deformable_detr deimv2 deit depth_anything depth_pro detr dinat dinov2
        dinov2_with_registers dinov3_convnext dinov3_vit donut-swin dpt edgetam edgetam_video
        efficientloftr efficientnet eomt eomt_dinov3 focalnet glpn grounding-dino hgnet_v2 hiera
        ijepa imagegpt levit lightglue lw_detr lw_detr_vit mask2former maskformer maskformer-swin
        mgp-str mlcd mlcd_vision_model mm-grounding-dino mobilenet_v1 mobilenet_v2 mobilevit
        mobilevitv2 omdet-turbo oneformer owlv2 owlvit pe_video perceiver pixio pixtral poolformer
        pp_doclayout_v2 pp_doclayout_v3 pp_doclayout_v4 pp_lcnet pp_lcnet_v3 pp_lcnet_v4
        pp_ocrv5_mobile_det pp_ocrv5_mobile_rec pp_ocrv5_server_det pp_ocrv5_server_rec
        pp_ocrv6_medium_det pp_ocrv6_small_det pp_ocrv6_small_rec pp_ocrv6_tiny_rec
        prompt_depth_anything pvt pvt_v2 radio regnet resnet rf_detr rf_detr_dinov2 rt_detr
        rt_detr_resnet rt_detr_v2 sam sam2 sam2_hiera_det_model sam2_video sam3 sam3_tracker
        sam3_tracker_video sam3_video sam3_vit_model sam_hq sapiens2 segformer seggpt
        siglip_vision_model slanet slanext superglue superpoint swiftformer swin swin2sr swinv2
        table-transformer textnet timesformer timm_backbone timm_wrapper tipsv2_dpt
        tipsv2_vision_model tvp upernet uvdoc uvdoc_backbone videomae videomt
        videoprism_vision_model vit vit_mae vit_msn vitdet vitmatte vitpose vitpose_backbone vivit
        vjepa2 yolos zoedepth
    """,
    "an audio model": """
        audio-spectrogram-transformer audioflamingo3 bark canary clap clvp cohere_asr csm
        csm_depth_decoder_model dac data2vec-audio dia encodec fastspeech2_conformer
        fastspeech2_conformer_with_hifigan fun_asr_nano glmasr gradium_phonon_tts granite_speech
        granite_speech5_ctc granite_speech_plus higgs_audio_v2 hubert kyutai_speech_to_text lasr_ctc
        mimi moonshine moonshine_streaming moshi moshi_depth moss_transcribe_diarize musicflamingo
        musicgen musicgen_melody nemo_speechlm nemotron3_5_asr nemotron3_5_transcribe_word_timestamp
        nemotron3_diarization nemotron_asr_streaming neucodec parakeet_ctc parakeet_rnnt
        parakeet_tdt pe_audio_video phi4_multimodal pocket_tts pop2piano qwen2_5_omni qwen2_audio
        qwen3_asr qwen3_omni_moe seamless_m4t seamless_m4t_v2 sew sew-d speech-encoder-decoder
        speech_to_text speecht5 unispeech unispeech-sat univnet vibevoice vibevoice_asr vits voxtral
        voxtral_realtime wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm whisper xcodec xcodec2
    """,
    "a time-series model": """
        autoformer informer patchtsmixer patchtst time_series_transformer timesfm timesfm2_5
    """,
    "a diffusion model": """
        diffusion_gemma diffusion_gemma_text qwen2_5_omni_dit vibevoice_diffusion
    """,
    "a decoder that is not supported yet": """
        biogpt bitnet blt codegen cohere_compass_text cpmant ctrl diffllama
        gemma4_assistant gemma4_unified_assistant
        gpt-sw3 gpt_neox_japanese granite_swa hrm_text hyperclovax
        internlm3 iquestcoder jais2 minicpm3 modernbert-decoder nanochat openai-gpt
        vaultgemma xglm youtu
    """,
    "not a language model": """
        EvollaModel decision_transformer esmfold2 jev
    """,
}

KINDS: Final[Mapping[str, str]] = {
    model_type: kind for kind, types in _TYPES.items() for model_type in types.split()
}
"""Model type to what it is, in a few words."""
